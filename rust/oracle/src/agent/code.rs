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
    mov rbx, [r15 + 8]
    mov rdi, [r15 + 24]
    mov rcx, [r15 + 32]
    pushfq
    pop r12
    or r12, [r15 + 16]              # TF, if the access is stepped
    mov rax, [r15 + {payload}]
    cmp rbx, 0
    je .Lcall
    cmp rbx, 1
    je .Lfork
    cmp rbx, 2
    je .Lspin
    cmp rbx, 3
    je .Lstore
    cmp rbx, 4
    je .Lload
    cmp rbx, 5
    je .Lexecute
    cmp rbx, 6
    je .Lxchg
    cmp rbx, 7
    je .Lcmpxchg
    cmp rbx, 8
    je .Lstos
    cmp rbx, 9
    je .Llods
    cmp rbx, 10
    je .Lmovss
    # POPF stands right before the address: return address and flags are where it and the RET behind it look.
    lea rax, [rip + .Ldone]
    push rax
    push r12
    lea rax, [rdi - 1]
    jmp rax
.Lexecute:
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
    cmp rcx, 1
    jne 2f
    push r12
    popfq
    mov [rdi], al
    jmp .Ldone
2:
    cmp rcx, 2
    jne 2f
    push r12
    popfq
    mov [rdi], ax
    jmp .Ldone
2:
    cmp rcx, 4
    jne 2f
    push r12
    popfq
    mov [rdi], eax
    jmp .Ldone
2:
    cmp rcx, 8
    jne 2f
    push r12
    popfq
    mov [rdi], rax
    jmp .Ldone
2:
    cmp rcx, 16
    jne 2f
    movups xmm0, [r15 + {payload}]
    push r12
    popfq
    movups [rdi], xmm0
    jmp .Ldone
2:
    vmovups ymm0, [r15 + {payload}]
    push r12
    popfq
    vmovups [rdi], ymm0
    jmp .Ldone

.Lload:
    cmp rcx, 1
    jne 2f
    push r12
    popfq
    mov al, [rdi]
    jmp .Ldone
2:
    cmp rcx, 2
    jne 2f
    push r12
    popfq
    mov ax, [rdi]
    jmp .Ldone
2:
    cmp rcx, 4
    jne 2f
    push r12
    popfq
    mov eax, [rdi]
    jmp .Ldone
2:
    cmp rcx, 8
    jne 2f
    push r12
    popfq
    mov rax, [rdi]
    jmp .Ldone
2:
    cmp rcx, 16
    jne 2f
    push r12
    popfq
    movups xmm0, [rdi]
    jmp .Ldone
2:
    push r12
    popfq
    vmovups ymm0, [rdi]
    jmp .Ldone

.Lxchg:
    cmp rcx, 1
    jne 2f
    push r12
    popfq
    xchg [rdi], al
    jmp .Ldone
2:
    cmp rcx, 2
    jne 2f
    push r12
    popfq
    xchg [rdi], ax
    jmp .Ldone
2:
    cmp rcx, 4
    jne 2f
    push r12
    popfq
    xchg [rdi], eax
    jmp .Ldone
2:
    push r12
    popfq
    xchg [rdi], rax
    jmp .Ldone

.Lcmpxchg:                          # memory is never zero: it fails
    mov rdx, rax
    xor eax, eax
    cmp rcx, 1
    jne 2f
    push r12
    popfq
    lock cmpxchg [rdi], dl
    jmp .Ldone
2:
    cmp rcx, 2
    jne 2f
    push r12
    popfq
    lock cmpxchg [rdi], dx
    jmp .Ldone
2:
    cmp rcx, 4
    jne 2f
    push r12
    popfq
    lock cmpxchg [rdi], edx
    jmp .Ldone
2:
    push r12
    popfq
    lock cmpxchg [rdi], rdx
    jmp .Ldone

.Lstos:
    mov rdx, rcx
    mov rcx, [r15 + 40]
    cmp rdx, 1
    jne 2f
    push r12
    popfq
    rep stosb
    jmp .Ldone
2:
    cmp rdx, 2
    jne 2f
    push r12
    popfq
    rep stosw
    jmp .Ldone
2:
    cmp rdx, 4
    jne 2f
    push r12
    popfq
    rep stosd
    jmp .Ldone
2:
    push r12
    popfq
    rep stosq
    jmp .Ldone

.Llods:
    mov rdx, rcx
    mov rcx, [r15 + 40]
    mov rsi, rdi
    cmp rdx, 1
    jne 2f
    push r12
    popfq
    rep lodsb
    jmp .Ldone
2:
    cmp rdx, 2
    jne 2f
    push r12
    popfq
    rep lodsw
    jmp .Ldone
2:
    cmp rdx, 4
    jne 2f
    push r12
    popfq
    rep lodsd
    jmp .Ldone
2:
    push r12
    popfq
    rep lodsq
    jmp .Ldone

.Lmovss:
    mov ss, word ptr [rdi]
    nop
.Ldone:
    pushfq
    btr qword ptr [rsp], 8          # TF
    popfq
    xor eax, eax
    jmp .Lresult

debugreg_agent_handler:             # SIGTRAP
    cmp dword ptr [rsi + 8], 6      # si_code: TRAP_PERF
    je 2f
    mov eax, 13                     # rt_sigaction: the default, which is death
    mov edi, 5
    movabs rsi, {message} + 0x200
    xor edx, edx
    mov r10d, 8
    syscall
    mov eax, 39                     # getpid
    syscall
    mov edi, eax
    mov eax, 62                     # kill
    mov esi, 5
    syscall
    ret
2:  movabs rax, {message}
    inc qword ptr [rax + {signals}]
    ret
debugreg_agent_restorer:
    mov eax, 15                     # rt_sigreturn
    syscall

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
    signals = const crate::channel::SIGNALS,
);

unsafe extern "C" {
    #[link_name = "debugreg_agent_start"]
    static START: u8;
    #[link_name = "debugreg_agent_end"]
    static END: u8;
    #[link_name = "debugreg_agent_handler"]
    static HANDLER: u8;
    #[link_name = "debugreg_agent_restorer"]
    static RESTORER: u8;
}

/// All of it; it runs at any address.
pub(super) fn machine_code() -> &'static [u8] {
    let (start, end) = (&raw const START, &raw const END);
    // SAFETY: both labels stand in one section of this object, START before END, and what lies between is constant.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Where in it the handler of SIGTRAP and its way back are: an event that asks for SIGTRAP is noted, any other kills.
pub(super) fn handler() -> [u64; 2] {
    let start = &raw const START;
    // SAFETY: all three labels stand in one section of this object, START first.
    [&raw const HANDLER, &raw const RESTORER].map(|label| unsafe { label.offset_from_unsigned(start) } as u64)
}
