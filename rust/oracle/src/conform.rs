//! Both worlds, side by side: what the model says, the kernel must do.

use debugreg_model::scenario::{self, Expectation, Scenario};

use crate::report::{Report, run};
use crate::{Error, Going, Likeness, World, generate, generate_guests, rehearse};

/// Where scenarios are performed beside the model.
pub trait Kernel {
    /// The model of it.
    fn likeness(&self) -> Likeness;

    /// Performs a scenario and judges it.
    ///
    /// # Errors
    ///
    /// Everything that keeps it from going on. After [`Error::Lost`] it is as new.
    fn run(&mut self, scenario: &Scenario, hazardous: bool, going: &mut Going<'_>) -> Result<Report, Error>;
}

/// The kernel that is running here.
#[derive(Debug, Default)]
pub struct Here(Option<World>);

impl Kernel for Here {
    fn likeness(&self) -> Likeness {
        Likeness::running()
    }

    fn run(&mut self, scenario: &Scenario, hazardous: bool, going: &mut Going<'_>) -> Result<Report, Error> {
        let mut world = match self.0.take() {
            Some(world) => world,
            None => World::new(self.likeness(), going)?,
        };
        let report = run(&mut world, scenario, hazardous, going)?;
        self.0 = Some(world);
        Ok(report)
    }
}

/// What came of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conformance {
    /// How many scenarios were performed in both worlds.
    pub scenarios: u64,
    /// How many of their lines could be observed.
    pub steps: u64,
    /// How many MOV to and from debug registers were compared.
    pub moves: u64,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Scenarios that differed once and not again: the machine was disturbed.
    pub disturbed: Vec<String>,
}

/// A scenario, as short as it could be made, in which the two differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The scenario; each line expects what the model says.
    pub scenario: String,
    /// The line that differs.
    pub line: u32,
    /// What the model says of it.
    pub expected: String,
    /// What the kernel did.
    pub observed: String,
}

/// How far a comparison is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Scenarios that are done.
    pub done: u64,
    /// Differences so far.
    pub differences: u64,
}

/// How often a difference must show before it is believed: of three times.
const BELIEVED: usize = 2;

/// How many candidates are tried to make a difference shorter.
const SHRINKING: usize = 600;

/// Of so many random scenarios one is about the host alone, if there are guests at all.
const HOST_ALONE: u64 = 4;

/// Performs scenarios (as text) and then `count` random ones in both worlds; with `guests`, most of those have some.
///
/// # Errors
///
/// No /dev/kvm where guests are wanted, a mistake in a file, and everything that keeps the world from going on. Differences are no error.
pub fn conform(
    kernel: &mut dyn Kernel,
    files: &[String],
    count: u64,
    seed: u64,
    hazardous: bool,
    guests: bool,
    progress: &mut (dyn FnMut(Progress) -> bool + '_),
) -> Result<Conformance, Error> {
    let mut result = Conformance::default();
    let likeness = kernel.likeness();
    let mut comparison = Comparison { kernel, likeness, hazardous };
    if guests {
        comparison.needs_guests(&mut || progress(Progress { done: 0, differences: 0 }))?;
    }
    let generated = (0..count).map(|at| {
        let seed = seed.wrapping_mul(1 << 32).wrapping_add(at);
        if guests && !seed.is_multiple_of(HOST_ALONE) { generate_guests(seed) } else { generate(seed) }
    });
    for text in files.iter().cloned().chain(generated) {
        let now = Progress { done: result.scenarios, differences: result.differences.len() as u64 };
        if !progress(now) {
            return Err(Error::Interrupted);
        }
        let mut going = || progress(now);
        let parsed = scenario::parse(&text)?;
        let Some(parsed) = expecting(&parsed, likeness)? else { continue };
        comparison.compare(&parsed, &mut result, &mut going)?;
        result.scenarios += 1;
    }
    Ok(result)
}

/// The scenario with the model's outcomes as expectations, if it is about a kernel like that one.
fn expecting(parsed: &Scenario, likeness: Likeness) -> Result<Option<Scenario>, Error> {
    if likeness.stranger(parsed).is_some() {
        return Ok(None);
    }
    let annotated = rehearse::annotated(&likeness.scenario(parsed), likeness.policy);
    Ok(annotated.map(|text| scenario::parse(&text)).transpose()?)
}

/// A candidate again, if everything that its lines name is still there.
fn without_what_is_gone(candidate: &Scenario, likeness: Likeness) -> Option<Scenario> {
    let mut bare = candidate.clone();
    for line in &mut bare.lines {
        line.expectation = line.expectation.take().filter(|expectation| matches!(expectation, Expectation::Bind(_)));
    }
    let bare = scenario::parse(&bare.to_string()).ok()?;
    scenario::parse(&rehearse::annotated(&bare, likeness.policy)?).ok()
}

struct Comparison<'k> {
    kernel: &'k mut dyn Kernel,
    likeness: Likeness,
    hazardous: bool,
}

impl Comparison<'_> {
    /// Has a guest entered, to see whether there can be any.
    fn needs_guests(&mut self, going: &mut Going<'_>) -> Result<(), Error> {
        let parsed = scenario::parse("task t\nvcpu v task=t\nv vm_entry\n")?;
        let report = self.run(&parsed, going)?;
        match report.steps.into_iter().find_map(|step| step.unobserved) {
            Some(why) => Err(Error::Unavailable(why)),
            None => Ok(()),
        }
    }

    fn compare(&mut self, parsed: &Scenario, into: &mut Conformance, going: &mut Going<'_>) -> Result<(), Error> {
        let first = self.run(parsed, going)?;
        into.steps += first.steps.iter().filter(|step| step.observed.is_some()).count() as u64;
        into.moves += first.moves;
        if differing(&first).is_none() {
            return Ok(());
        }
        let mut times = 1;
        for _ in 0..2 {
            times += usize::from(differing(&self.run(parsed, going)?).is_some());
        }
        if times < BELIEVED {
            into.disturbed.push(parsed.to_string());
            return Ok(());
        }
        let shortest = self.shrink(parsed.clone(), going)?;
        // The shortest may have been a disturbance; the original is not.
        for candidate in [&shortest, &shortest, parsed, parsed, parsed] {
            if let Some((line, expected, observed)) = differing(&self.run(candidate, going)?) {
                into.differences.push(Difference { scenario: candidate.to_string(), line, expected, observed });
                break;
            }
        }
        Ok(())
    }

    /// Leaves out lines as long as the two differ.
    fn shrink(&mut self, mut shortest: Scenario, going: &mut Going<'_>) -> Result<Scenario, Error> {
        let mut left = SHRINKING;
        let mut size = shortest.lines.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            let before = shortest.lines.len();
            while at < shortest.lines.len() && left > 0 {
                let mut candidate = shortest.clone();
                candidate.lines.drain(at..(at + size).min(candidate.lines.len()));
                left -= 1;
                match self.still_differs(&candidate, going)? {
                    Some(candidate) => shortest = candidate,
                    None => at += size,
                }
            }
            if shortest.lines.len() == before || size > 1 {
                size /= 2;
            }
        }
        Ok(shortest)
    }

    fn still_differs(&mut self, candidate: &Scenario, going: &mut Going<'_>) -> Result<Option<Scenario>, Error> {
        let Some(parsed) = without_what_is_gone(candidate, self.likeness) else { return Ok(None) };
        for _ in 0..BELIEVED {
            if differing(&self.run(&parsed, going)?).is_none() {
                return Ok(None);
            }
        }
        Ok(Some(parsed))
    }

    fn run(&mut self, parsed: &Scenario, going: &mut Going<'_>) -> Result<Report, Error> {
        match self.kernel.run(parsed, self.hazardous, going) {
            // Once may be bad luck.
            Err(Error::Lost(_)) => match self.kernel.run(parsed, self.hazardous, going) {
                Err(Error::Lost(why)) => Err(Error::Lost(format!("{why}, in\n{parsed}"))),
                other => other,
            },
            other => other,
        }
    }
}

/// The first line whose expectation fails: its number, the expectation, the observation.
fn differing(report: &Report) -> Option<(u32, String, String)> {
    let step = report.steps.iter().find(|step| step.ok == Some(false))?;
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    Some((step.line, said(&step.expected), said(&step.observed)))
}
