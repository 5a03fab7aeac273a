use debugreg_model::{Options, Policy};
use debugreg_trace::{Trace, replay, steps};
use std::path::Path;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read(&args[1]).unwrap();
    let st = steps::parse(Path::new("x"), &std::fs::read(&args[2]).unwrap()).unwrap();
    let (from, to, by): (usize, usize, usize) = (args[3].parse().unwrap(), args[4].parse().unwrap(), args[5].parse().unwrap());
    let tail: usize = args.get(6).map_or(0, |a| a.parse().unwrap());
    let lines: Vec<&[u8]> = text.split_inclusive(|&b| b == b'\n').collect();
    let head: Vec<u8> = lines[..12].concat();
    let policy = Policy::parse("debian-6.12").unwrap();
    let mut prev: Option<[u64; 5]> = None;
    for cut in (from..to).step_by(by) {
        let end = if tail == 0 { lines.len() } else { (cut + tail).min(lines.len()) };
        let mut t = head.clone();
        t.extend(lines[cut - 1..end].concat());
        for with in [false, true] {
            let mut trace = Trace::parse("x", &t);
            if with { trace.lay_beside(&st); }
            let r = replay(&trace, policy, Options { vendor: trace.vendor, ..Options::default() }, true, |_| true).unwrap();
            let v = r.verify.unwrap();
            let s = [v.install, v.uninstall, v.restore, v.sync, v.step.unwrap_or_default()];
            let show: Vec<String> = s.iter().map(|s| format!("{}{}+{}", s.observed, if s.is_exact() { "" } else { "!" }, s.undetermined)).collect();
            let bad = !v.is_exact() || !v.differences.is_empty();
            if args.get(7).is_some() || bad || (with && trace.untied.is_some()) {
                println!("{cut} {} {} diffs {} undet {} untied {}", if with { "steps" } else { "lines" }, show.join(" "), v.differences.len(), v.undetermined.len(), trace.untied.is_some());
                for d in v.differences.iter().take(2) { println!("   {d:?}"); }
            }
            if with && tail == 0 {
                let now = [s[0].observed, s[1].observed, s[2].observed, s[3].observed, s[4].observed];
                if let Some(p) = prev { if now.iter().zip(&p).any(|(a, b)| a > b) { println!("   {cut} not monotone {p:?} -> {now:?}"); } }
                prev = Some(now);
            }
        }
    }
}
