//! Which processor a thread runs on, and what it used of it.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};

/// Pins the calling thread to one processor.
///
/// # Errors
/// When the process may not use that processor.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no processor {cpu}")));
    }
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// The processors this process may use.
///
/// # Errors
/// When the kernel does not say.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// What the calling thread had used when it was taken.
#[derive(Debug, Clone, Copy)]
pub struct ThreadUse {
    at: Instant,
    cpu: Duration,
    /// Time spent runnable but waiting; `None` where the kernel does not count it.
    waited: Option<Duration>,
}

impl ThreadUse {
    /// Of the calling thread, now.
    #[must_use]
    pub fn now() -> Self {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        let cpu = Duration::new(u64::try_from(cpu.tv_sec).unwrap_or(0), u32::try_from(cpu.tv_nsec).unwrap_or(0));
        // Nanoseconds on a processor, nanoseconds runnable but waiting, time slices.
        let waited = fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .map(Duration::from_nanos);
        Self { at: Instant::now(), cpu, waited }
    }

    /// CPU and waiting from `earlier` to this, as shares of the time between.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> (f64, Option<f64>) {
        let wall = self.at.duration_since(earlier.at).as_secs_f64().max(1e-9);
        let cpu = self.cpu.saturating_sub(earlier.cpu).as_secs_f64() / wall;
        let waited = self.waited.zip(earlier.waited).map(|(b, a)| b.saturating_sub(a).as_secs_f64() / wall);
        (cpu, waited)
    }
}

/// Time of all processors since boot, in ticks of `/proc/stat`.
#[derive(Debug, Clone, Copy)]
pub struct MachineUse {
    total: u64,
    stolen: u64,
}

impl MachineUse {
    /// Now; `None` where there is no `/proc`.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.lines().next()?.split_whitespace();
        if fields.next()? != "cpu" {
            return None;
        }
        // user nice system idle iowait irq softirq steal; guest time is inside user time.
        let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
        Some(Self { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// Share of all processors' time that the hypervisor took from `earlier` to this.
    #[must_use]
    pub fn steal_since(&self, earlier: &Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|&t| t > 0)?;
        Some(self.stolen.saturating_sub(earlier.stolen) as f64 / total as f64)
    }
}

/// Most memory this process had resident; `None` where there is no `/proc`.
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_uses_its_processor_and_a_sleeping_one_does_not() {
        let start = ThreadUse::now();
        std::thread::sleep(Duration::from_millis(30));
        let slept = ThreadUse::now();
        let mut x = 0u64;
        while slept.at.elapsed() < Duration::from_millis(30) {
            x = std::hint::black_box(x.wrapping_mul(3) + 1);
        }
        let busy = ThreadUse::now();
        assert!(slept.since(&start).0 < 0.5);
        // Other tests run beside this one: compare CPU plus waiting, where it is known.
        let (cpu, waited) = busy.since(&slept);
        assert!(cpu + waited.unwrap_or(1.0) > 0.5, "{cpu} {waited:?}");
    }

    #[test]
    fn steal_is_a_share_of_all_processors_time() {
        let stat =
            |user, steal| MachineUse::parse(&format!("cpu  {user} 0 0 0 0 0 0 {steal} 0 0\ncpu0 1")).expect("cpu");
        assert_eq!(stat(190, 10).steal_since(&stat(100, 0)), Some(0.1));
        assert_eq!(stat(1, 0).steal_since(&stat(1, 0)), None);
        assert!(MachineUse::parse("intr 5").is_none());
    }

    #[test]
    fn an_allowed_processor_can_be_pinned_and_an_absent_one_not() {
        let cpus = allowed().expect("affinity");
        std::thread::spawn(move || {
            pin(cpus[0]).expect("allowed");
            assert_eq!(allowed().expect("affinity"), vec![cpus[0]]);
            assert!(pin(usize::MAX).is_err());
        })
        .join()
        .expect("no panic");
    }
}
