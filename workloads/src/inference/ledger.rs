//! Where GPU time goes: a partition of each worker's time line, exact to the nanosecond.
//!
//! A ledger only ever moves forward: whoever owns it says what the time since its cursor was spent on. It counts what
//! lies between Measure and Stop, so the cells sum to the window whatever happens around it.

use gpufeed_schema::{GpuPoint, GpuTime};

use crate::op::Tick;

/// What a worker's time is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Cell {
    /// Prefill of blocks nobody had computed.
    Prefill,
    /// Prefill of blocks that had been computed before.
    Recompute,
    /// Decode.
    Decode,
    /// Waiting for look-ups, loads or pinned blocks.
    StorageStall,
    /// Waiting for transfer between pools.
    TransferStall,
    /// Nothing to do.
    NoWork,
    /// Not there.
    Down,
}

const CELLS: usize = 7;
type Cells = [u64; CELLS];

/// What one iteration (or a run of equal ones) was for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// What prefill, recompute and decode would each take alone; only their proportion matters.
    pub alone: [f64; 3],
    /// Nanoseconds of it that were an exposed wait for storage.
    pub exposed_ns: u64,
    /// Sequences in the iteration.
    pub sequences: u64,
    /// Model FLOPs of it.
    pub flops: f64,
    /// Model bytes of it.
    pub bytes: f64,
}

/// Most points of a time line; steps double when there would be more.
const POINTS: usize = 240;
const FIRST_STEP_NS: u64 = 100_000_000;

/// The books of one worker.
#[derive(Debug, Clone)]
pub struct Ledger {
    cursor: u64,
    from: u64,
    until: u64,
    cells: Cells,
    step_ns: u64,
    points: Vec<Cells>,
    sequence_ns: f64,
    batch_ns: f64,
    flops: f64,
    bytes: f64,
    gauge_at: u64,
    gauge: (u64, u64),
    starved_ns: f64,
}

/// Shares `total` in proportion to `weights`, whole and exact: each share is rounded down, and what is left goes to the
/// largest remainders (Hamilton's method), earlier cells first among equals.
#[must_use]
pub fn largest_remainder<const N: usize>(total: u64, weights: [f64; N]) -> [u64; N] {
    let sum: f64 = weights.iter().sum();
    let mut shares = [0; N];
    if N == 0 || total == 0 {
        return shares;
    }
    if sum.is_nan() || sum <= 0.0 {
        shares[0] = total;
        return shares;
    }
    let mut remainders = [0.0; N];
    let mut given = 0u64;
    for i in 0..N {
        let exact = total as f64 * (weights[i] / sum);
        shares[i] = (exact.floor() as u64).min(total - given);
        remainders[i] = exact - exact.floor();
        given += shares[i];
    }
    let mut left = total - given;
    while left > 0 {
        let mut best = 0;
        for i in 1..N {
            if remainders[i] > remainders[best] {
                best = i;
            }
        }
        // More than one each is left only where `f64` cannot hold the total; the rest then goes to the largest weight.
        let more = if remainders[best] < 0.0 { left } else { 1 };
        shares[best] += more;
        remainders[best] = -1.0;
        left -= more;
    }
    shares
}

impl Ledger {
    /// Books that begin, and count, at `at`.
    #[must_use]
    pub fn new(at: Tick) -> Self {
        Self {
            cursor: at.0,
            from: at.0,
            until: u64::MAX,
            cells: [0; CELLS],
            step_ns: FIRST_STEP_NS,
            points: Vec::new(),
            sequence_ns: 0.0,
            batch_ns: 0.0,
            flops: 0.0,
            bytes: 0.0,
            gauge_at: at.0,
            gauge: (0, 0),
            starved_ns: 0.0,
        }
    }

    /// Where the books stand.
    #[must_use]
    pub const fn cursor(&self) -> Tick {
        Tick(self.cursor)
    }

    /// Forgets everything before `at`. Time already booked beyond `at` is not counted, so settle to `at` first, and
    /// book iterations when they end.
    pub fn measure(&mut self, at: Tick) {
        let (gauge, gauge_at) = (self.gauge, self.gauge_at.max(at.0));
        *self = Self { cursor: self.cursor, gauge, gauge_at, ..Self::new(at) };
    }

    /// Counts nothing after `at`.
    pub fn stop(&mut self, at: Tick) {
        self.until = self.until.min(at.0);
    }

    /// Books the time up to `until` in one cell.
    pub fn idle(&mut self, until: Tick, cell: Cell) {
        if let Some((start, end)) = self.advance(until) {
            self.pieces(start, end, |length| {
                let mut cells = [0; CELLS];
                cells[cell as usize] = length;
                cells
            });
        }
    }

    /// Books an iteration that ends at `until`.
    pub fn iteration(&mut self, until: Tick, spent: &Spent) {
        let whole = until.0.saturating_sub(self.cursor);
        let Some((start, end)) = self.advance(until) else { return };
        let counted = (end - start) as f64;
        let share = counted / whole as f64;
        self.sequence_ns += counted * spent.sequences as f64;
        self.batch_ns += counted;
        self.flops += share * spent.flops;
        self.bytes += share * spent.bytes;
        let exposed = spent.exposed_ns.min(whole) as f64;
        let work: f64 = spent.alone.iter().sum();
        let scale = if work > 0.0 { (whole as f64 - exposed) / work } else { 0.0 };
        let [prefill, recompute, decode] = spent.alone.map(|alone| alone * scale);
        self.pieces(start, end, |length| {
            let [prefill, recompute, decode, stall] = largest_remainder(length, [prefill, recompute, decode, exposed]);
            [prefill, recompute, decode, stall, 0, 0, 0]
        });
    }

    /// Says how many requests are loading and running from `at` on.
    pub fn gauge(&mut self, at: Tick, loading: u64, running: u64) {
        let start = self.gauge_at.clamp(self.from, self.until.max(self.from));
        let end = at.0.clamp(start, self.until.max(start));
        let (was_loading, was_running) = self.gauge;
        if was_loading > 0 {
            self.starved_ns += (end - start) as f64 * was_loading as f64 / (was_loading + was_running) as f64;
        }
        self.gauge_at = self.gauge_at.max(at.0);
        self.gauge = (loading, running);
    }

    /// Moves the cursor; returns what part of that lies in the window.
    fn advance(&mut self, until: Tick) -> Option<(u64, u64)> {
        if until.0 <= self.cursor {
            return None;
        }
        let start = self.cursor.max(self.from);
        let end = until.0.min(self.until);
        self.cursor = until.0;
        (start < end).then_some((start, end))
    }

    /// Cuts `start..end` at the steps of the time line and books each piece.
    fn pieces(&mut self, mut start: u64, end: u64, share: impl Fn(u64) -> Cells) {
        while start < end {
            let mut point = ((start - self.from) / self.step_ns) as usize;
            while point >= POINTS {
                self.coarsen(self.step_ns * 2);
                point = ((start - self.from) / self.step_ns) as usize;
            }
            let cut = end.min(self.from + (point as u64 + 1) * self.step_ns);
            let cells = share(cut - start);
            if self.points.len() <= point {
                self.points.resize(point + 1, [0; CELLS]);
            }
            add(&mut self.cells, &cells);
            add(&mut self.points[point], &cells);
            start = cut;
        }
    }

    fn coarsen(&mut self, step_ns: u64) {
        let by = (step_ns / self.step_ns) as usize;
        self.points = self
            .points
            .chunks(by)
            .map(|points| std::array::from_fn(|cell| points.iter().map(|cells| cells[cell]).sum()))
            .collect();
        self.step_ns = step_ns;
    }
}

fn add(cells: &mut Cells, more: &Cells) {
    cells.iter_mut().zip(more).for_each(|(cell, more)| *cell += more);
}

/// Peaks that MFU and MBU are shares of, one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// FLOP/s of all its GPUs.
    pub flops_per_s: f64,
    /// Memory bytes per second of all its GPUs.
    pub bytes_per_s: f64,
}

/// Adds up the books of several workers over the window `measured`, extended to the last iteration booked where a
/// window that no Stop has cut ends before it. What a worker did not book is time without work.
/// Times are reported divided by `time_scale`; ratios do not change.
#[must_use]
pub fn summarize(
    ledgers: impl IntoIterator<Item = Ledger>,
    measured: (Tick, Tick),
    peaks: Peaks,
    time_scale: f64,
) -> (GpuTime, Vec<GpuPoint>) {
    let mut ledgers: Vec<Ledger> = ledgers.into_iter().collect();
    let booked = ledgers.iter().map(|ledger| ledger.cursor.min(ledger.until)).max().unwrap_or(0);
    let measured = (measured.0, measured.1.max(Tick(booked)));
    for ledger in &mut ledgers {
        ledger.stop(measured.1);
        let (loading, running) = ledger.gauge;
        ledger.gauge(measured.1, loading, running);
        ledger.idle(measured.1, Cell::NoWork);
    }
    let step_ns = ledgers.iter().map(|ledger| ledger.step_ns).max().unwrap_or(FIRST_STEP_NS);
    let mut points: Vec<Cells> = Vec::new();
    let mut cells: Cells = [0; CELLS];
    for ledger in &mut ledgers {
        ledger.coarsen(step_ns);
        points.resize(points.len().max(ledger.points.len()), [0; CELLS]);
        points.iter_mut().zip(&ledger.points).for_each(|(point, more)| add(point, more));
        add(&mut cells, &ledger.cells);
    }
    let total_ns = measured.1.0.saturating_sub(measured.0.0) * ledgers.len() as u64;
    let sum = |of: fn(&Ledger) -> f64| ledgers.iter().map(of).sum::<f64>();
    let gpu = gpu_time(cells, total_ns, time_scale);
    let busy_s = (cells[0] + cells[1] + cells[2]) as f64 / time_scale / 1e9;
    let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let gpu = GpuTime {
        storage_starved_ratio: ratio(sum(|l| l.starved_ns), total_ns as f64),
        mean_batch: ratio(sum(|l| l.sequence_ns), sum(|l| l.batch_ns)),
        mfu_ratio: ratio(sum(|l| l.flops), busy_s * peaks.flops_per_s),
        mbu_ratio: ratio(sum(|l| l.bytes), busy_s * peaks.bytes_per_s),
        ..gpu
    };
    let timeline = points.iter().enumerate().map(|(i, cells)| point(i as f64 * step_ns as f64, cells, time_scale));
    (gpu, timeline.collect())
}

fn gpu_time(cells: Cells, total_ns: u64, time_scale: f64) -> GpuTime {
    let ratio = |part: u64| if total_ns > 0 { part as f64 / total_ns as f64 } else { 0.0 };
    let busy = cells[0] + cells[1] + cells[2];
    // Scaling rounds the total once and shares it out again, so that the reported cells still sum exactly.
    let (reported_total, reported) = if time_scale == 1.0 {
        (total_ns, cells)
    } else {
        let scaled = (total_ns as f64 / time_scale).round() as u64;
        (scaled, largest_remainder(scaled, cells.map(|cell| cell as f64)))
    };
    GpuTime {
        total_ns: reported_total,
        prefill_ns: reported[0],
        recompute_ns: reported[1],
        decode_ns: reported[2],
        storage_stall_ns: reported[3],
        transfer_stall_ns: reported[4],
        no_work_ns: reported[5],
        down_ns: reported[6],
        prefill_ratio: ratio(cells[0]),
        recompute_ratio: ratio(cells[1]),
        decode_ratio: ratio(cells[2]),
        storage_stall_ratio: ratio(cells[3]),
        transfer_stall_ratio: ratio(cells[4]),
        no_work_ratio: ratio(cells[5]),
        down_ratio: ratio(cells[6]),
        busy_ratio: ratio(busy),
        recompute_tax_ratio: if busy > 0 { cells[1] as f64 / busy as f64 } else { 0.0 },
        ..GpuTime::default()
    }
}

fn point(t_ns: f64, cells: &Cells, time_scale: f64) -> GpuPoint {
    let total: u64 = cells.iter().sum();
    let ratio = |cell: usize| if total > 0 { cells[cell] as f64 / total as f64 } else { 0.0 };
    GpuPoint {
        t_s: t_ns / time_scale / 1e9,
        prefill_ratio: ratio(0),
        recompute_ratio: ratio(1),
        decode_ratio: ratio(2),
        storage_stall_ratio: ratio(3),
        transfer_stall_ratio: ratio(4),
        no_work_ratio: ratio(5),
        down_ratio: ratio(6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(gpu: &GpuTime) -> u64 {
        gpu.prefill_ns
            + gpu.recompute_ns
            + gpu.decode_ns
            + gpu.storage_stall_ns
            + gpu.transfer_stall_ns
            + gpu.no_work_ns
            + gpu.down_ns
    }

    const PEAKS: Peaks = Peaks { flops_per_s: 1e12, bytes_per_s: 1e12 };

    #[test]
    fn remainders_go_to_the_largest() {
        assert_eq!(largest_remainder(10, [1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(largest_remainder(10, [0.16, 0.16, 0.68]), [2, 1, 7]);
        assert_eq!(largest_remainder(7, [0.0, 0.0]), [7, 0]);
        assert_eq!(largest_remainder(0, [1.0]), [0]);
    }

    #[test]
    fn an_iteration_is_cut_at_measure_and_stop() {
        let mut ledger = Ledger::new(Tick(0));
        ledger.measure(Tick(600));
        let spent = Spent { alone: [1.0, 0.0, 3.0], exposed_ns: 200, sequences: 4, flops: 1000.0, bytes: 500.0 };
        // 0..1000, of which 400 lie in the window: a fifth is exposed, the rest is one to three.
        ledger.iteration(Tick(1000), &spent);
        ledger.idle(Tick(1300), Cell::StorageStall);
        ledger.stop(Tick(1500));
        ledger.iteration(Tick(2000), &Spent { alone: [0.0, 0.0, 1.0], sequences: 2, ..Spent::default() });
        let (gpu, _) = summarize([ledger], (Tick(600), Tick(1500)), PEAKS, 1.0);
        assert_eq!((gpu.prefill_ns, gpu.decode_ns, gpu.storage_stall_ns), (80, 240 + 200, 80 + 300));
        assert_eq!((gpu.total_ns, sum(&gpu)), (900, 900));
        assert!((gpu.mean_batch - (400.0 * 4.0 + 200.0 * 2.0) / 600.0).abs() < 1e-12);
        assert!((gpu.mfu_ratio - 400.0 / (520e-9 * 1e12)).abs() < 1e-9, "{}", gpu.mfu_ratio);
    }

    /// Every ratio of the design's §4 against its definition, by hand.
    #[test]
    fn ratios_follow_their_definitions() {
        let mut one = Ledger::new(Tick(0));
        // An exposed wait of 200; what is left goes 2 : 1 : 1.
        let mixed = Spent { alone: [2.0, 1.0, 1.0], exposed_ns: 200, sequences: 4, flops: 4000.0, bytes: 8000.0 };
        one.gauge(Tick(0), 1, 4);
        one.iteration(Tick(1000), &mixed);
        one.gauge(Tick(1000), 2, 0);
        one.idle(Tick(1300), Cell::StorageStall);
        one.gauge(Tick(1300), 0, 0);
        one.idle(Tick(1400), Cell::TransferStall);
        one.idle(Tick(1500), Cell::Down);
        let decode = Spent { alone: [0.0, 0.0, 1.0], sequences: 1, flops: 100.0, bytes: 400.0, ..Spent::default() };
        one.gauge(Tick(1500), 0, 1);
        one.iteration(Tick(1600), &decode);
        one.gauge(Tick(1600), 0, 0);
        one.idle(Tick(2000), Cell::NoWork);
        let other = Ledger::new(Tick(0));
        let peaks = Peaks { flops_per_s: 1e13, bytes_per_s: 2e13 };
        let (gpu, timeline) = summarize([one, other], (Tick(0), Tick(2000)), peaks, 1.0);
        assert_eq!((gpu.total_ns, sum(&gpu)), (4000, 4000));
        assert_eq!((gpu.prefill_ns, gpu.recompute_ns, gpu.decode_ns), (400, 200, 200 + 100));
        assert_eq!((gpu.storage_stall_ns, gpu.transfer_stall_ns, gpu.down_ns), (200 + 300, 100, 100));
        assert_eq!(gpu.no_work_ns, 400 + 2000);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} against {b}");
        near(gpu.busy_ratio, 1.0 - (500.0 + 100.0 + 100.0 + 2400.0) / 4000.0);
        near(gpu.recompute_tax_ratio, 200.0 / 900.0);
        // ∫ loading ÷ (loading + running) over worker-seconds: 1 of 5 for 1000, 2 of 2 for 300.
        near(gpu.storage_starved_ratio, (0.2 * 1000.0 + 300.0) / 4000.0);
        near(gpu.mean_batch, (4.0 * 1000.0 + 100.0) / 1100.0);
        near(gpu.mfu_ratio, 4100.0 / (900e-9 * 1e13));
        near(gpu.mbu_ratio, 8400.0 / (900e-9 * 2e13));
        near(timeline[0].prefill_ratio, gpu.prefill_ratio);
    }

    #[test]
    fn starvation_is_the_share_of_loading() {
        let mut ledger = Ledger::new(Tick(0));
        ledger.gauge(Tick(0), 1, 3);
        ledger.gauge(Tick(400), 2, 0);
        ledger.gauge(Tick(500), 0, 5);
        let (gpu, _) = summarize([ledger], (Tick(0), Tick(1000)), PEAKS, 1.0);
        assert!((gpu.storage_starved_ratio - (400.0 * 0.25 + 100.0) / 1000.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn shares_sum_to_the_total(total in 0u64..u64::MAX / 2, weights in prop::array::uniform4(0.0..1e9f64)) {
            let shares = largest_remainder(total, weights);
            prop_assert_eq!(shares.iter().sum::<u64>(), total);
            // Within one, as far as f64 can tell, of the exact share.
            let all: f64 = weights.iter().sum();
            if all > 0.0 {
                for (share, weight) in shares.iter().zip(weights) {
                    let exact = total as f64 * (weight / all);
                    prop_assert!((*share as f64 - exact).abs() <= 1.0 + total as f64 * 1e-14);
                }
            }
        }

        #[test]
        fn cells_sum_to_workers_times_window(
            workers in prop::collection::vec(
                prop::collection::vec((0u64..3_000_000_000, 0usize..9, prop::array::uniform3(0.0..5.0f64)), 0..60), 1..4),
            from in 0u64..20_000_000_000, length in 1u64..60_000_000_000, scale in 1u64..4,
        ) {
            let (measure, stop) = (Tick(from), Tick(from + length));
            let ledgers = workers.iter().map(|steps| {
                let mut ledger = Ledger::new(Tick(0));
                let mut now = 0;
                let mut measured = false;
                for &(length, kind, alone) in steps {
                    if !measured && now + length >= from {
                        measured = true;
                        ledger.measure(measure);
                    }
                    if now + length >= stop.0 {
                        ledger.stop(stop);
                    }
                    now += length;
                    match kind {
                        0..4 => ledger.iteration(Tick(now), &Spent { alone, exposed_ns: length / 7, ..Spent::default() }),
                        4 => ledger.idle(Tick(now), Cell::StorageStall),
                        5 => ledger.idle(Tick(now), Cell::TransferStall),
                        6 => ledger.idle(Tick(now), Cell::Down),
                        _ => ledger.idle(Tick(now), Cell::NoWork),
                    }
                }
                if !measured {
                    ledger.idle(measure, Cell::NoWork);
                    ledger.measure(measure);
                }
                ledger
            });
            let (gpu, timeline) = summarize(ledgers, (measure, stop), PEAKS, scale as f64);
            let exact = length * workers.len() as u64;
            prop_assert_eq!(gpu.total_ns, (exact as f64 / scale as f64).round() as u64);
            prop_assert_eq!(sum(&gpu), gpu.total_ns);
            prop_assert!(timeline.len() <= POINTS);
            for point in &timeline {
                let ratios = point.prefill_ratio + point.recompute_ratio + point.decode_ratio + point.storage_stall_ratio
                    + point.transfer_stall_ratio + point.no_work_ratio + point.down_ratio;
                prop_assert!((ratios - 1.0).abs() < 1e-9);
            }
        }
    }
}
