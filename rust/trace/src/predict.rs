//! What the model says, CPU by CPU, as it says it.

use debugreg::Registers;
use debugreg_model::{CpuId, Machine, Mark, Step, VcpuId};

use crate::input::Done;

/// What the model says of one CPU, in order.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Item {
    /// An input line opens a window; what follows is in it.
    Window(Window),
    /// Something of which the trace has a line.
    Done(Done),
    /// The VM entry itself.
    Entry,
    /// A MOV DR, with its value if it is a write.
    Mov { dr: u8, value: Option<u64> },
}

/// A window, and what the lines before it have told of what it depends on.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Window {
    /// Its row.
    pub(crate) row: u32,
    /// Nothing is in a register when it opens.
    pub(crate) is_empty: bool,
    /// Of a VM exit: whether the guest's registers are read back.
    pub(crate) sync_told: bool,
    /// Of a VM entry or exit: of which vCPU.
    pub(crate) vcpu: Option<VcpuId>,
    /// Of a VM entry: whether the guest's registers are loaded.
    pub(crate) load: Load,
    /// Of a VM entry or exit: which of the addresses that it loads, or reads back.
    pub(crate) addresses_told: [bool; 4],
    /// Of a VM exit: whether the lines tell the guest's DR7 otherwise than by the kernel's word.
    pub(crate) control_told: bool,
    /// Of a VM exit: the guest's own registers; of a VM entry those that are in force, its own or its debugger's.
    pub(crate) guest: Registers,
}

/// Whether the lines tell if an entry loads a guest's registers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// They do.
    Told,
    /// It is presumed that nothing bears on it that was set before.
    Presumed,
    /// Something does.
    Hidden,
}

/// Items that come a little later than the line that asks for them: another CPU did, by an interrupt, or a close, which
/// kernels before 6.6 carry out when the call has returned (`____fput` as task work; `__fput_sync` since).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Asked {
    /// Where they are among the items.
    pub(crate) at: usize,
    pub(crate) count: usize,
    /// The line before which that is done.
    pub(crate) until: u32,
}

/// What the model says.
#[derive(Clone, Debug)]
pub(crate) struct Predictions {
    pub(crate) cpus: Vec<Vec<Item>>,
    /// By CPU: what others asked for.
    pub(crate) asked: Vec<Vec<Asked>>,
    /// The CPU that acts at once, and before which line everything else is done.
    acting: (Option<CpuId>, u32),
    /// By CPU: where its last window is.
    open: Vec<Option<usize>>,
}

impl Predictions {
    pub(crate) fn new(cpus: usize) -> Predictions {
        Predictions {
            cpus: vec![Vec::new(); cpus],
            asked: vec![Vec::new(); cpus],
            acting: (None, 0),
            open: vec![None; cpus],
        }
    }

    /// What follows is done by this CPU at once, by others before that line.
    pub(crate) fn act(&mut self, cpu: CpuId, until: u32) {
        self.acting = (Some(cpu), until);
    }

    /// What follows is done before that line.
    pub(crate) fn act_late(&mut self, until: u32) {
        self.acting = (None, until);
    }

    fn push(&mut self, cpu: CpuId, item: Item) {
        let at = self.cpus[cpu.index()].len();
        let (acting, until) = self.acting;
        if Some(cpu) != acting {
            let asked = &mut self.asked[cpu.index()];
            match asked.last_mut().filter(|last| last.until == until && last.at + last.count == at) {
                Some(last) => last.count += 1,
                None => asked.push(Asked { at, count: 1, until }),
            }
        }
        self.cpus[cpu.index()].push(item);
    }

    pub(crate) fn open_window(&mut self, machine: &Machine, cpu: CpuId, row: usize) {
        let is_empty = !machine.cpu(cpu).bank.owner.iter().any(|&owner| owner != debugreg::Owner::NONE);
        let items = &mut self.cpus[cpu.index()];
        self.open[cpu.index()] = Some(items.len());
        items.push(Item::Window(Window {
            row: row as u32,
            is_empty,
            sync_told: true,
            vcpu: None,
            load: Load::Told,
            addresses_told: [true; 4],
            control_told: false,
            guest: Registers::RESET,
        }));
    }

    /// The window that is open.
    pub(crate) fn window(&mut self, cpu: CpuId) -> Option<&mut Window> {
        match &mut self.cpus[cpu.index()][self.open[cpu.index()]?] {
            Item::Window(window) => Some(window),
            _ => None,
        }
    }

    pub(crate) fn step(&mut self, cpu: CpuId, step: Step) {
        let mov = match step {
            Step::WriteDr(dr, value) => Item::Mov { dr: dr.number(), value: Some(value) },
            Step::ReadDr(dr, _) => Item::Mov { dr: dr.number(), value: None },
            _ => return,
        };
        self.push(cpu, mov);
    }

    pub(crate) fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        let item = match mark {
            Mark::Install(id) => Item::Done(Done::Install(machine.counter(id).info.address)),
            Mark::Uninstall(id) => Item::Done(Done::Uninstall(machine.counter(id).info.address)),
            Mark::Restore => Item::Done(Done::Restore),
            Mark::Sync => Item::Done(Done::Sync),
            Mark::Entry => Item::Entry,
            Mark::Nmi => return,
        };
        self.push(cpu, item);
    }
}
