//! The agent's instructions. They are constant data here, and run only where the kernel has loaded them as a program.

#![allow(unsafe_code)]

std::arch::global_asm!(
    r#"
    .pushsection .rodata.debugreg_agent, "a", @progbits
debugreg_agent_start:
    movabs r15, {message}
    lea rsp, [r15 + 0x3f00]
    mov r13d, 0x40                  # MSG_DONTWAIT: after execve as before, until told to sleep
    mov qword ptr [r15], 0
.Lrespond:
    mov eax, 1                      # write
    xor edi, edi
    mov rsi, r15
    mov edx, {bytes}
    syscall
.Lnext:
    mov eax, 45                     # recvfrom
    xor edi, edi
    mov rsi, r15
    mov edx, {bytes}
    mov r10, r13
    xor r8d, r8d
    xor r9d, r9d
    syscall
    cmp rax, -4                     # EINTR
    je .Lnext
    cmp rax, -11                    # EAGAIN
    jne 2f
    pause
    jmp .Lnext
2:  test rax, rax
    jle .Lend
    mov rax, [r15 + 8]
    mov rdi, [r15 + 24]
    mov rcx, [r15 + 32]
    cmp rax, 0
    je .Lcall
    cmp rax, 1
    je .Lfork
    cmp rax, 2
    je .Lspin
    cmp rax, 3
    je .Lstore
    cmp rax, 4
    je .Lload
    call rdi
    xor eax, eax
.Lresult:
    mov [r15], rax
    jmp .Lrespond

.Lcall:
    mov rax, [r15 + 16]
    mov rsi, [r15 + 32]
    mov rdx, [r15 + 40]
    mov r10, [r15 + 48]
    mov r8, [r15 + 56]
    mov r9, [r15 + 64]
    syscall
    jmp .Lresult

.Lfork:
    mov eax, 56                     # clone
    mov rdi, [r15 + 16]
    xor esi, esi
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    syscall
    test rax, rax
    js .Lresult
    jz .Lchild
    mov r14, rax
    mov eax, 203                    # sched_setaffinity
    mov rdi, r14
    mov esi, 128
    lea rdx, [r15 + {payload}]
    syscall
    mov rax, r14
    jmp .Lresult
.Lchild:
    mov eax, 33                     # dup2
    mov rdi, [r15 + 24]
    xor esi, esi
    syscall
    xor r13d, r13d
    mov eax, 39                     # getpid
    syscall
    jmp .Lresult

.Lspin:
    mov r13, [r15 + 16]
    xor eax, eax
    jmp .Lresult

.Lstore:
    mov rax, [r15 + {payload}]
    cmp rcx, 1
    jne 2f
    mov [rdi], al
    jmp .Ldone
2:  cmp rcx, 2
    jne 2f
    mov [rdi], ax
    jmp .Ldone
2:  cmp rcx, 4
    jne 2f
    mov [rdi], eax
    jmp .Ldone
2:  cmp rcx, 8
    jne 2f
    mov [rdi], rax
    jmp .Ldone
2:  cmp rcx, 16
    jne 2f
    movups xmm0, [r15 + {payload}]
    movups [rdi], xmm0
    jmp .Ldone
2:  vmovups ymm0, [r15 + {payload}]
    vmovups [rdi], ymm0
    jmp .Ldone

.Lload:
    cmp rcx, 1
    jne 2f
    mov al, [rdi]
    jmp .Ldone
2:  cmp rcx, 2
    jne 2f
    mov ax, [rdi]
    jmp .Ldone
2:  cmp rcx, 4
    jne 2f
    mov eax, [rdi]
    jmp .Ldone
2:  cmp rcx, 8
    jne 2f
    mov rax, [rdi]
    jmp .Ldone
2:  cmp rcx, 16
    jne 2f
    movups xmm0, [rdi]
    jmp .Ldone
2:  vmovups ymm0, [rdi]
.Ldone:
    xor eax, eax
    jmp .Lresult

.Lend:
    mov eax, 231                    # exit_group
    xor edi, edi
    syscall
    ud2
debugreg_agent_end:
    .popsection
    "#,
    message = const super::MESSAGE,
    bytes = const crate::channel::BYTES,
    payload = const crate::channel::PAYLOAD,
);

/// All of it; it runs at any address.
pub(super) fn machine_code() -> &'static [u8] {
    unsafe extern "C" {
        #[link_name = "debugreg_agent_start"]
        static START: u8;
        #[link_name = "debugreg_agent_end"]
        static END: u8;
    }
    let (start, end) = (&raw const START, &raw const END);
    // SAFETY: both labels stand in one section of this object, START before END, and what lies between is constant.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
