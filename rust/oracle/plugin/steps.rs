//! A plugin of QEMU's emulation that logs every MOV to and from a debug register, every VMRUN, and every entry of a
//! few functions: lines `CPU PC WHAT`, as `rust/trace/src/steps.rs` reads them.
//!
//! The driver inside speaks to it by a NOP: RSI 0 marks the log with the number in RDI (`M line N`), RSI n > 0 has the
//! entries of the function at address RDI logged under the n-th of [`NAMES`].
//!
//! It declares the few functions of QEMU, GLib and libc that it calls, and needs nothing to be linked with: the emulator
//! has them all. Built by `build.rs`, loaded with `-plugin steps.so,fd=N`.

#![no_std]

mod decode;

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::fmt::{self, Write as _};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering::Relaxed};

use decode::{Instruction, decode};

/// Functions whose entries can be logged, and the driver's own marks.
const NAMES: [&str; 9] = [
    "line",
    "install",
    "uninstall",
    "restore",
    "task_sched_out",
    "task_sched_in",
    "exc_debug_user",
    "noist_exc_debug",
    "exc_nmi",
];

/// General registers as instructions number them, and one more.
const REGISTERS: [&CStr; 17] = [
    c"rax", c"rcx", c"rdx", c"rbx", c"rsp", c"rbp", c"rsi", c"rdi", c"r8", c"r9", c"r10", c"r11", c"r12", c"r13", c"r14",
    c"r15", c"cs",
];
const RSI: u8 = 6;
const RDI: u8 = 7;
const CS: u8 = 16;

/// More CPUs than a machine of ours has.
const CPUS: usize = 8;

type Callback = extern "C" fn(cpu: c_uint, what: *mut c_void);

/// `qemu_plugin_reg_descriptor`.
#[repr(C)]
struct Descriptor {
    handle: *mut c_void,
    name: *const c_char,
    feature: *const c_char,
}

/// `GArray` and `GByteArray`, as far as they are public.
#[repr(C)]
struct Array<T> {
    data: *mut T,
    length: c_uint,
}

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(plugin: u64, callback: extern "C" fn(u64, c_uint));
    fn qemu_plugin_register_vcpu_tb_trans_cb(plugin: u64, callback: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_register_vcpu_insn_exec_cb(insn: *mut c_void, callback: Callback, flags: c_int, what: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void, into: *mut c_void, length: usize) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    fn qemu_plugin_get_registers() -> *mut Array<Descriptor>;
    fn qemu_plugin_read_register(handle: *mut c_void, into: *mut Array<u8>) -> c_int;
    fn g_array_free(array: *mut Array<Descriptor>, contents: c_int) -> *mut c_char;
    fn g_byte_array_new() -> *mut Array<u8>;
    fn g_byte_array_set_size(array: *mut Array<u8>, length: c_uint) -> *mut Array<u8>;
    fn g_malloc(bytes: usize) -> *mut c_void;
    fn strcmp(one: *const c_char, other: *const c_char) -> c_int;
    fn strtol(text: *const c_char, end: *mut *mut c_char, base: c_int) -> isize;
    fn strncmp(one: *const c_char, other: *const c_char, length: usize) -> c_int;
    fn write(file: c_int, bytes: *const c_void, length: usize) -> isize;
    fn abort() -> !;
}

/// `QEMU_PLUGIN_CB_R_REGS`: the callback reads registers.
const READS_REGISTERS: c_int = 1;

/// The version of the interface: since 3 `qemu_plugin_insn_data` copies.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU looks for this name")]
pub static qemu_plugin_version: c_int = 3;

/// The log. Its writer adds lines at the end, each by one call, so that those of two CPUs do not mix.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// By number in [`REGISTERS`]: what QEMU calls it.
static HANDLES: [AtomicPtr<c_void>; REGISTERS.len()] = [const { AtomicPtr::new(null_mut()) }; REGISTERS.len()];

/// By CPU: where QEMU puts the value of a register.
static VALUES: [AtomicPtr<Array<u8>>; CPUS] = [const { AtomicPtr::new(null_mut()) }; CPUS];

/// By number in [`NAMES`]: the address of the function, 0 without one.
static FUNCTIONS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// What is logged when an instruction is executed. Made when it is translated, and never freed: there are few.
#[derive(Copy, Clone)]
struct Place {
    pc: u64,
    what: What,
}

#[derive(Copy, Clone)]
enum What {
    Instruction(Instruction),
    Entry(usize),
}

/// Called by QEMU when it loads the plugin.
///
/// # Safety
///
/// As QEMU calls it: `arguments` are `count` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    plugin: u64,
    _info: *const c_void,
    count: c_int,
    arguments: *mut *mut c_char,
) -> c_int {
    for at in 0..count as usize {
        // SAFETY: see above; the strings live as long as the plugin.
        unsafe {
            let argument = *arguments.add(at);
            if strncmp(argument, c"fd=".as_ptr(), 3) != 0 {
                return 1;
            }
            LOG.store(strtol(argument.add(3), null_mut(), 10) as c_int, Relaxed);
        }
    }
    // SAFETY: functions of QEMU, with the identity that it has given us.
    unsafe {
        qemu_plugin_register_vcpu_init_cb(plugin, start_cpu);
        qemu_plugin_register_vcpu_tb_trans_cb(plugin, translate);
    }
    c_int::from(LOG.load(Relaxed) < 0)
}

extern "C" fn start_cpu(_plugin: u64, cpu: c_uint) {
    let Some(value) = VALUES.get(cpu as usize) else { return };
    // SAFETY: this is where QEMU lets registers be listed; the list is ours, its strings are not.
    unsafe {
        value.store(g_byte_array_new(), Relaxed);
        let list = qemu_plugin_get_registers();
        for at in 0..(*list).length as usize {
            let Descriptor { handle, name, .. } = *(*list).data.add(at);
            for (known, place) in REGISTERS.iter().zip(&HANDLES) {
                if strcmp(name, known.as_ptr()) == 0 {
                    place.store(handle, Relaxed);
                }
            }
        }
        g_array_free(list, 1);
    }
}

extern "C" fn translate(_plugin: u64, block: *mut c_void) {
    // SAFETY: QEMU's functions on QEMU's block, while it is translated.
    for at in 0..unsafe { qemu_plugin_tb_n_insns(block) } {
        let mut bytes = [0u8; 15];
        // SAFETY: as before; at most 15 bytes are copied.
        let (insn, length, pc) = unsafe {
            let insn = qemu_plugin_tb_get_insn(block, at);
            let length = qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), bytes.len());
            (insn, length, qemu_plugin_insn_vaddr(insn))
        };
        if let Some(instruction) = decode(&bytes[..length.min(bytes.len())]) {
            watch(insn, Place { pc, what: What::Instruction(instruction) });
        }
        for (name, function) in FUNCTIONS.iter().enumerate() {
            if pc != 0 && function.load(Relaxed) == pc {
                watch(insn, Place { pc, what: What::Entry(name) });
            }
        }
    }
}

fn watch(insn: *mut c_void, place: Place) {
    // SAFETY: g_malloc returns aligned memory or ends the process; QEMU hands the pointer back as it is.
    unsafe {
        let kept = g_malloc(size_of::<Place>()).cast::<Place>();
        kept.write(place);
        qemu_plugin_register_vcpu_insn_exec_cb(insn, execute, READS_REGISTERS, kept.cast());
    }
}

extern "C" fn execute(cpu: c_uint, place: *mut c_void) {
    // SAFETY: what `watch` has kept; nobody changes it.
    let Place { pc, what } = unsafe { *place.cast::<Place>() };
    // At another CPL it is #GP, before anybody looks whether it is intercepted: it does not happen.
    let is_mov = matches!(what, What::Instruction(Instruction::Write { .. } | Instruction::Read { .. }));
    if is_mov && register(cpu, CS) & 3 != 0 {
        return;
    }
    let mut line = Line { bytes: [0; 96], length: 0 };
    // A line never fills it: the longest has two numbers of 16 digits and a name.
    let _ = match what {
        What::Entry(name) => {
            writeln!(line, "{cpu} {pc:x} M {} {:x}", NAMES[name], register(cpu, RDI))
        }
        What::Instruction(Instruction::Write { dr, gpr }) => {
            writeln!(line, "{cpu} {pc:x} W {dr} {:x}", register(cpu, gpr))
        }
        What::Instruction(Instruction::Read { dr }) => writeln!(line, "{cpu} {pc:x} R {dr}"),
        What::Instruction(Instruction::VmRun) => writeln!(line, "{cpu} {pc:x} E"),
        What::Instruction(Instruction::Message) => match register(cpu, RSI) as usize {
            0 => writeln!(line, "{cpu} {pc:x} M {} {:x}", NAMES[0], register(cpu, RDI)),
            name => {
                if let Some(function) = FUNCTIONS.get(name) {
                    function.store(register(cpu, RDI), Relaxed);
                }
                return;
            }
        },
    };
    // SAFETY: the bytes are ours; a log that cannot be written is seen by its reader.
    unsafe { write(LOG.load(Relaxed), line.bytes.as_ptr().cast(), line.length) };
}

fn register(cpu: c_uint, number: u8) -> u64 {
    let Some(value) = VALUES.get(cpu as usize).map(|value| value.load(Relaxed)) else { return 0 };
    let handle = HANDLES[usize::from(number)].load(Relaxed);
    let mut bytes = [0; 8];
    // SAFETY: an array of our own, used by the thread of this CPU only, and a handle of QEMU's.
    unsafe {
        g_byte_array_set_size(value, 0);
        qemu_plugin_read_register(handle, value);
        for (at, byte) in bytes.iter_mut().enumerate().take((*value).length as usize) {
            *byte = *(*value).data.add(at);
        }
    }
    u64::from_le_bytes(bytes)
}

/// Text of a limited length.
struct Line {
    bytes: [u8; 96],
    length: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let rest = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        rest.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: it ends the emulator, which the host sees.
    unsafe { abort() }
}

/// The compiled parts of core name it, for unwinding that never happens here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
