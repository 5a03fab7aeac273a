//! What the model has to be to say what a kernel does: its policy, and whether its CPUs are real.

use debugreg_model::policy::PolicyError;
use debugreg_model::scenario::{self, Scenario, ScenarioError};
use debugreg_model::{Policy, Processor};

/// The model of a kernel and of the machine that it runs on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Likeness {
    /// What the kernel does.
    pub policy: Policy,
    /// What its CPUs are.
    pub processor: Processor,
}

impl Likeness {
    /// The model of the kernel that is running, which is taken for the newest.
    ///
    /// # Panics
    ///
    /// Never: there is such a policy.
    pub fn running() -> Likeness {
        Likeness { policy: Policy::parse("linux").expect("there is such a policy"), processor: Processor::Real }
    }

    /// The model of a kernel under QEMU's emulation.
    ///
    /// # Errors
    ///
    /// There is no such policy.
    pub fn emulated(policy: &str) -> Result<Likeness, PolicyError> {
        Ok(Likeness { policy: Policy::parse(policy)?, processor: Processor::Tcg })
    }

    /// Why a scenario is about something else, if it is.
    pub(crate) fn stranger(self, scenario: &Scenario) -> Option<String> {
        let meant = |name: &String| Policy::parse(name).is_ok_and(|policy| policy == self.policy);
        if !scenario.policies.is_empty() && !scenario.policies.iter().any(meant) {
            return Some(format!("the file is about {}, not about this kernel", scenario.policies.join(", ")));
        }
        (scenario.options.processor == Processor::Tcg && self.processor != Processor::Tcg)
            .then(|| "the file is about an emulated CPU".to_owned())
    }

    /// The scenario on a machine like this one.
    pub(crate) fn scenario(self, scenario: &Scenario) -> Scenario {
        let mut scenario = scenario.clone();
        scenario.policies.clear();
        if self.processor == Processor::Tcg {
            scenario.options.processor = Processor::Tcg;
            // CPUID.8000000AH:EDX: the emulator has none.
            scenario.options.decode_assists = false;
        }
        scenario
    }

    /// Performs a scenario in the model, as it stands.
    pub(crate) fn run(self, scenario: &Scenario) -> Result<scenario::Report, ScenarioError> {
        scenario::run(scenario, self.policy, None, false)
    }
}
