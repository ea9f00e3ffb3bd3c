//! What this process has used of the machine: for `balsa bench`, and for whoever watches a cluster.

/// Use since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Processor time of all threads, in user and in kernel mode, in microseconds.
    pub cpu_us: u64,
    /// Memory held now, in bytes.
    pub resident_bytes: u64,
    /// Bytes handed to the disk, as the system counts them: whole pages.
    pub written_bytes: u64,
}

impl Usage {
    /// Asks the system; `None` where it does not tell. A simulated node has no process of its own.
    #[must_use]
    #[cfg(all(target_os = "linux", not(madsim)))]
    pub fn of_this_process() -> Option<Usage> {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let status = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = status.split_whitespace().nth(1)?.parse().ok()?;
        // Not to be read in some containers: nothing written is then the best that can be said.
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        Some(Usage {
            cpu_us: cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1_000,
            resident_bytes: pages * rustix::param::page_size() as u64,
            written_bytes: written.unwrap_or(0),
        })
    }

    /// Asks the system; `None` where it does not tell. A simulated node has no process of its own.
    #[must_use]
    #[cfg(not(all(target_os = "linux", not(madsim))))]
    pub fn of_this_process() -> Option<Usage> {
        None
    }
}

#[cfg(all(test, target_os = "linux", not(madsim)))]
mod tests {
    use super::*;

    #[test]
    fn work_costs_time_and_memory() {
        let before = Usage::of_this_process().unwrap();
        let held = vec![1u8; 32 << 20];
        let after = loop {
            std::hint::black_box(held.iter().map(|byte| u64::from(*byte)).sum::<u64>());
            let now = Usage::of_this_process().unwrap();
            if now.cpu_us >= before.cpu_us + 1_000 {
                break now;
            }
        };
        assert!(after.resident_bytes >= 32 << 20, "{after:?}");
    }
}
