//! Retrieval-augmented generation: a query's reads from storage, and what they do to its first token.
//!
//! A query arrives, is embedded (emulated time), reads `nprobe` posting lists by ranged GETs all at once, ranks what
//! they gave (emulated time), fetches its passages all at once, and is answered by an emulated inference worker that
//! reuses the KV cache of prompt prefixes in GPU memory. While a worker has nothing to compute and a query bound for it
//! waits for a read, its time is a storage stall.

mod books;
mod corpus;
mod index;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gpufeed_schema::{ClosedOrOpen, Distribution, Latency, Section};

use crate::inference::{CostModel, Ledger, Limits, Peaks, Worker, summarize};
use crate::machine::{Actions, Dataset, Event, Machine, ObjectRun, Sizes, Submit, Workload};
use crate::op::{Key, KeyStyle, Names, Op, Outcome, Space, Tick};
use crate::random::mix2;
use crate::schedule::Schedule;
use crate::trace::Trace;

use books::{Books, Query, Stage};
use corpus::Corpus;
pub use index::{IndexPlan, Ivf, Range};

/// Space of the index's segment objects.
const INDEX: u16 = 0;
/// Space of passages.
const PASSAGES: u16 = 1;

/// When queries arrive.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "arrivals", deny_unknown_fields)]
pub enum QueryArrivals {
    /// As in the trace, `speed` times as fast.
    Trace {
        /// 2 halves all gaps.
        speed: f64,
    },
    /// As a Poisson process, in the order of the trace's arrivals and over again when it ends, so that passages keep
    /// their popularity. Repeated queries are asked by others: their questions and histories are new.
    Poisson {
        /// Queries per second.
        rate_per_s: f64,
    },
}

/// A RAG run, every default resolved.
#[derive(Debug, Clone)]
pub struct RagPlan {
    /// Queries with the parts of their prompts.
    pub trace: Arc<Trace>,
    /// When they arrive.
    pub arrivals: QueryArrivals,
    /// Ends the run after so many queries; none runs until it is stopped, or the trace ends.
    pub queries: Option<u64>,
    /// The index on the target.
    pub index: IndexPlan,
    /// Bytes of a passage's text per token.
    pub bytes_per_token: f64,
    /// Time to embed a question, emulated.
    pub embed: Duration,
    /// Time to rank what the posting lists gave, emulated.
    pub rerank: Duration,
    /// Text before every key.
    pub prefix: String,
    /// Most reads in flight.
    pub lanes: usize,
    /// Emulated inference workers.
    pub workers: u32,
    /// What their iterations cost.
    pub cost: Arc<CostModel>,
    /// Their knobs. `time_scale` stretches arrivals and all emulated times; results are divided by it.
    pub limits: Limits,
    /// Seed of index layout, list choice and arrivals.
    pub seed: u64,
    /// Further inputs to print in the report, such as the names of model and GPU.
    pub inputs: BTreeMap<String, String>,
}

/// A plan that cannot be run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RagError {
    /// The trace says nothing of passages.
    #[error("trace has no passages: run rag needs a RAGPulse trace, or one made by `gpufeed trace synth rag`")]
    NoPassages,
    /// A number that makes no run.
    #[error("{what} must be {must}")]
    Value {
        /// Which.
        what: &'static str,
        /// What it must be.
        must: &'static str,
    },
}

/// What a wake is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Arrival,
    Query(u32),
    Worker(u32),
}

impl Wake {
    const fn tag(self) -> u64 {
        match self {
            Self::Arrival => 0,
            Self::Query(slot) => 1 << 32 | slot as u64,
            Self::Worker(worker) => 2 << 32 | worker as u64,
        }
    }

    const fn of(tag: u64) -> Self {
        match tag >> 32 {
            0 => Self::Arrival,
            1 => Self::Query(tag as u32),
            _ => Self::Worker(tag as u32),
        }
    }
}

/// RAG queries on one target and some emulated workers.
#[derive(Debug)]
pub struct Rag {
    corpus: Corpus,
    books: Books,
    workers: Vec<Worker>,
    /// Deadline last asked for, by worker.
    asked: Vec<Option<Tick>>,
    /// Queries with reads in flight, by worker.
    reading: Vec<u64>,
    schedule: Option<Schedule>,
    next: u64,
    /// Model time: never goes back, whatever order completions are seen in.
    clock: Tick,
    stopped: bool,
    lists: Vec<u32>,
}

impl Rag {
    /// A machine that runs `plan`.
    ///
    /// # Errors
    /// When the plan cannot be run; says why.
    pub fn new(plan: RagPlan) -> Result<Self, RagError> {
        let corpus = Corpus::new(plan)?;
        let workers = corpus.plan.workers as usize;
        Ok(Self {
            books: Books::new(workers, corpus.plan.limits.time_scale),
            corpus,
            workers: Vec::new(),
            asked: vec![None; workers],
            reading: vec![0; workers],
            schedule: None,
            next: 0,
            clock: Tick::ZERO,
            stopped: false,
            lists: Vec::new(),
        })
    }

    fn at(&mut self, at: Tick) -> Tick {
        self.clock = self.clock.max(at);
        self.clock
    }

    fn start(&mut self, now: Tick, out: &mut Actions) {
        let plan = &self.corpus.plan;
        self.workers = (0..plan.workers).map(|i| Worker::new(i, Arc::clone(&plan.cost), plan.limits, now)).collect();
        self.schedule = Some(self.corpus.schedule(now));
        self.books.measure(now);
        self.expect_arrival(out);
    }

    fn expect_arrival(&mut self, out: &mut Actions) {
        let more = !self.stopped && self.corpus.plan.queries.is_none_or(|queries| self.next < queries);
        match self.schedule.as_mut().filter(|_| more).and_then(Iterator::next) {
            Some(at) => out.wake(at, Wake::Arrival.tag()),
            None => self.schedule = None,
        }
    }

    fn arrive(&mut self, at: Tick, out: &mut Actions) {
        let loads = self.books.load.iter().enumerate();
        let worker = loads.min_by_key(|&(_, load)| *load).map_or(0, |(worker, _)| worker) as u32;
        let reached = at + self.corpus.stretched(self.corpus.plan.embed);
        let slot = self.books.open(Query {
            number: self.next,
            arrived: at,
            worker,
            stage: Stage::Embed,
            pending: 0,
            reached,
            retrieve_ns: 0,
        });
        self.next += 1;
        self.expect_arrival(out);
        self.proceed_at(slot, at, reached, out);
    }

    /// Goes on with a query at `due`: at once where no emulated time lies in between.
    fn proceed_at(&mut self, slot: u32, at: Tick, due: Tick, out: &mut Actions) {
        if due > at {
            out.wake(due, Wake::Query(slot).tag());
        } else {
            self.proceed(slot, due, out);
        }
    }

    /// The emulated time before the next stage of a query is over.
    fn proceed(&mut self, slot: u32, at: Tick, out: &mut Actions) {
        let Some(query) = self.books.query(slot) else { return };
        let number = query.number;
        match query.stage {
            Stage::Embed | Stage::Rerank => {
                query.reached = at;
                let (worker, stage) = (query.worker, query.stage);
                let mut reads = 0;
                let mut read = |op| {
                    out.submit(Submit { tag: u64::from(slot), worker, intended: at, op });
                    reads += 1;
                };
                let stage = if stage == Stage::Embed {
                    self.corpus.postings(number, &mut self.lists, &mut read);
                    Stage::Postings
                } else {
                    self.corpus.fetches(number, &mut read);
                    Stage::Passages
                };
                query.stage = stage;
                query.pending = reads;
                if reads == 0 {
                    self.stage_over(slot, out);
                } else {
                    self.reading[worker as usize] += 1;
                    self.say_reading(worker, at);
                }
            }
            Stage::Generate => {
                let (worker, arrived) = (query.worker, query.arrived);
                let job = self.corpus.job(slot, number, arrived);
                let now = self.at(at);
                self.workers[worker as usize].enqueue(now, at, job, &mut self.books);
            }
            Stage::Postings | Stage::Passages | Stage::Failed => {}
        }
    }

    fn say_reading(&mut self, worker: u32, at: Tick) {
        let now = self.at(at);
        let reading = self.reading[worker as usize];
        self.workers[worker as usize].awaiting(now, reading, &mut self.books);
    }

    fn done(&mut self, tag: u64, op: &Op, outcome: &Outcome, out: &mut Actions) {
        if outcome.result.is_ok() && self.books.counts(outcome.intended) {
            match op.key.space {
                INDEX => self.books.posting_bytes += outcome.bytes,
                _ => self.books.passage_bytes += outcome.bytes,
            }
        }
        let slot = tag as u32;
        let Some(query) = self.books.query(slot) else { return };
        query.pending -= 1;
        query.reached = query.reached.max(outcome.done);
        let (worker, last, reached) = (query.worker, query.pending == 0, query.reached);
        let failed = query.stage == Stage::Failed;
        if !failed && (last || outcome.result.is_err()) {
            self.reading[worker as usize] -= 1;
            self.say_reading(worker, reached);
        }
        if failed || outcome.result.is_err() {
            self.books.fail(slot);
        } else if last {
            self.stage_over(slot, out);
        }
    }

    /// All reads of a stage are there.
    fn stage_over(&mut self, slot: u32, out: &mut Actions) {
        let Some(query) = self.books.query(slot) else { return };
        let reached = query.reached;
        let wait = if query.stage == Stage::Postings {
            query.stage = Stage::Rerank;
            self.corpus.stretched(self.corpus.plan.rerank)
        } else {
            query.stage = Stage::Generate;
            let (index, _) = self.corpus.place(query.number);
            let tokens = u64::from(self.corpus.plan.trace.requests()[index].input_tokens);
            self.books.retrieved(slot);
            self.corpus.stretched(Duration::from_nanos(self.corpus.plan.cost.request_ns(tokens).round() as u64))
        };
        self.proceed_at(slot, reached, reached + wait, out);
    }

    /// Finishes what ends by `now`, then cuts every worker's books there.
    fn cut(&mut self, now: Tick, cut: impl Fn(&mut Worker, Tick)) {
        let now = self.at(now);
        for worker in &mut self.workers {
            worker.advance(now, &mut self.books);
            cut(worker, now);
        }
    }

    fn ask_wakes(&mut self, out: &mut Actions) {
        for (i, worker) in self.workers.iter().enumerate() {
            let due = worker.due();
            if due != self.asked[i] {
                if let Some(due) = due {
                    out.wake(due, Wake::Worker(i as u32).tag());
                }
                self.asked[i] = due;
            }
        }
    }

    fn inputs(&self) -> BTreeMap<String, String> {
        let plan = &self.corpus.plan;
        let index = &plan.index;
        let mut inputs = plan.inputs.clone();
        let mut say = |name: &str, value: String| {
            inputs.insert(name.to_owned(), value);
        };
        say(
            "index",
            format!(
                "synthetic IVF: {} vectors of {} dimensions in {} lists (log-normal lengths, sigma {}), nprobe {}",
                index.vectors, index.dims, index.lists, index.skew, index.nprobe
            ),
        );
        say("passages", format!("{} objects, {} bytes per token", self.corpus.sizes.len(), plan.bytes_per_token));
        say("embed", format!("{:?}, emulated", plan.embed));
        say("rerank", format!("{:?}, emulated", plan.rerank));
        say("routing", "fewest queries not over".to_owned());
        say("hbm_blocks", format!("{} of {} tokens", plan.limits.hbm_blocks, plan.limits.block_tokens));
        inputs
    }
}

impl Machine for Rag {
    fn step(&mut self, now: Tick, event: Event<'_>, out: &mut Actions) {
        match event {
            Event::Start => self.start(now, out),
            Event::Due { at, tag } => match Wake::of(tag) {
                Wake::Arrival if !self.stopped => self.arrive(at, out),
                Wake::Arrival => {}
                Wake::Query(slot) => self.proceed(slot, at, out),
                Wake::Worker(worker) => {
                    let now = self.at(at);
                    self.workers[worker as usize].advance(now, &mut self.books);
                }
            },
            Event::Done { tag, op, outcome } => self.done(tag, op, outcome, out),
            Event::Measure => {
                self.cut(now, Worker::measure);
                self.books.measure(now);
            }
            Event::Stop => {
                self.cut(now, Worker::stop);
                self.books.stop(now);
                (self.stopped, self.schedule) = (true, None);
            }
        }
        self.ask_wakes(out);
        if self.schedule.is_none() && self.books.live() == 0 {
            out.finish();
        }
    }
}

impl Workload for Rag {
    fn names(&self) -> Names {
        let space = |before: &str, digits, after: &str| Space {
            before: format!("{}{before}", self.corpus.plan.prefix),
            after: after.to_owned(),
            style: KeyStyle::Index(digits),
        };
        Names { spaces: vec![space("index/segment_", 6, ".ivf"), space("passages/", 8, ".txt")] }
    }

    fn dataset(&self) -> Dataset {
        let segments: Arc<[u64]> = self.corpus.ivf.objects().collect();
        let run = |space, sizes: Arc<[u64]>| ObjectRun {
            first: Key { space, rank: 0, id: 0, ..Key::ZERO },
            count: sizes.len() as u64,
            sizes: Sizes::Each(sizes),
        };
        Dataset { runs: vec![run(INDEX, segments), run(PASSAGES, Arc::clone(&self.corpus.sizes))] }
    }

    fn lanes(&self) -> usize {
        self.corpus.plan.lanes
    }

    fn plan_hash(&self) -> u64 {
        let (mut hash, mut count) = (0, 0u32);
        let mut lists = Vec::new();
        let arrivals = self.corpus.schedule(Tick::ZERO);
        let bound = self.corpus.bound().unwrap_or(u64::MAX);
        for (number, at) in (0..bound).zip(arrivals) {
            let job = self.corpus.job(0, number, Tick::ZERO);
            hash = [at.0, job.prompt_tokens, job.output_tokens].into_iter().chain(job.blocks).fold(hash, mix2);
            let mut add = |op: Op| {
                hash = [u64::from(op.key.space), op.key.id, op.offset, op.bytes].into_iter().fold(hash, mix2);
                count += 1;
            };
            self.corpus.postings(number, &mut lists, &mut add);
            self.corpus.fetches(number, &mut add);
            if count >= 65_536 {
                break;
            }
        }
        hash
    }

    fn issues_by_plan(&self) -> bool {
        // Which reads are issued follows from the plan, but not in which order queries' reads mix.
        false
    }

    fn load(&self) -> ClosedOrOpen {
        let offered_per_s = match self.corpus.plan.arrivals {
            QueryArrivals::Trace { .. } => None,
            QueryArrivals::Poisson { rate_per_s } => Some(rate_per_s),
        };
        ClosedOrOpen::Open { offered_per_s }
    }

    fn progress(&self) -> Option<f64> {
        self.corpus.bound().map(|bound| self.books.over as f64 / bound.max(1) as f64)
    }

    fn section(&self, measured: (Tick, Tick)) -> Section {
        let (plan, books) = (&self.corpus.plan, &self.books);
        let scale = plan.limits.time_scale;
        let tp = f64::from(plan.cost.tp);
        let peaks =
            Peaks { flops_per_s: plan.cost.peak_flops_per_s * tp, bytes_per_s: plan.cost.peak_hbm_bytes_per_s * tp };
        let ledgers: Vec<Ledger> = self.workers.iter().map(|worker| worker.ledger().clone()).collect();
        let (gpu, timeline) = summarize(ledgers, measured, peaks, scale);
        let window_s = measured.1.since(measured.0).as_secs_f64() / scale;
        Section::Rag(Box::new(gpufeed_schema::Rag {
            queries: books.arrived,
            completed: books.completed,
            failed: books.failed,
            unfinished: books.arrived - books.completed - books.failed,
            recall_ratio: None,
            retrieve: Distribution::of(&books.retrieve),
            ttft: Distribution::of(&books.ttft),
            e2e: Latency::of(&books.e2e),
            retrieve_share_ratio: (books.ttft_sum_ns > 0)
                .then(|| books.retrieve_sum_ns as f64 / books.ttft_sum_ns as f64),
            queries_per_s: if window_s > 0.0 { books.completed_within as f64 / window_s } else { 0.0 },
            posting_bytes: books.posting_bytes,
            passage_bytes: books.passage_bytes,
            ingest: None,
            gpu,
            timeline,
            inputs: self.inputs(),
        }))
    }
}

#[cfg(test)]
mod tests;
