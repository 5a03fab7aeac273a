//! Names of things inside the machine: small numbers, so that state stays plain data. What a user calls them
//! lives in the scenario.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in the machine's table.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl From<usize> for $name {
            fn from(index: usize) -> Self {
                $name(index as u32)
            }
        }
    };
}

id!(
    /// A CPU.
    CpuId
);
id!(
    /// A task (a thread, as the scheduler sees it).
    TaskId
);
id!(
    /// A perf breakpoint counter, whoever made it (perf or ptrace).
    CounterId
);
id!(
    /// A perf context: the counters of a task or of a CPU.
    ContextId
);
id!(
    /// A virtual CPU.
    VcpuId
);

impl TaskId {
    /// The idle task. Every CPU runs it when it runs nobody else; it has no breakpoints.
    pub const IDLE: TaskId = TaskId(0);
}
