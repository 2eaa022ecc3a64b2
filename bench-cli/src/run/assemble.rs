//! From what members found out to one report.

use gpufeed_engine::measured::CpuUse;
use gpufeed_reports::{claims, validity, verdict};
use gpufeed_schema::{Client, Member, Run, RunReport, SCHEMA_VERSION, Tool, Validity, ValidityStatus, Verdict};
use xxhash_rust::xxh3::xxh3_64;

use crate::calibrate::Ceiling;
use crate::client::Target;
use crate::host;
use crate::plan::{MemberPlan, Plan, SpecPlan};
use crate::run::matrix;
use crate::run::member::Outcome;

/// A report in the making.
#[derive(Debug)]
pub(super) struct Draft {
    report: RunReport,
    ceiling: Option<Ceiling>,
    plan_hashes: Vec<String>,
    issued_hashes: Option<Vec<String>>,
    cpu: Vec<(f64, CpuUse)>,
    server_cpu: Vec<(f64, f64)>,
    server: Option<(u32, Option<u64>)>,
    /// With the CPU share of the busiest client core, which decides between equals.
    verdicts: Vec<(Verdict, f64, String)>,
    self_test: bool,
    /// Members that are part of the table of routing × shared tier, and how they route.
    matrix: Vec<(usize, &'static str)>,
}

impl Draft {
    /// An empty report of a plan.
    pub(super) fn new(plan: &Plan) -> Self {
        let run = Run {
            workload: plan.workload.clone(),
            target: plan.target.name(),
            transport: plan.target.transport().to_owned(),
            seed: plan.seed,
            started_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            duration_s: 0.0,
            warm_up_s: 0.0,
            scaled: plan.members.iter().any(|member| !member.scaling.is_empty()),
            scaling: plan
                .members
                .iter()
                .flat_map(|member| member.scaling.iter().map(|words| format!("{}: {words}", member.name)))
                .collect(),
            plan_hash: String::new(),
            issued_hash: None,
        };
        let report = RunReport {
            schema_version: SCHEMA_VERSION.to_owned(),
            tool: Tool {
                name: "gpufeed".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                commit: env!("GPUFEED_COMMIT").to_owned(),
            },
            interrupted: false,
            verdict: Verdict::SelfTest,
            verdict_detail: String::new(),
            hosts: vec![host::look()],
            clients: Vec::new(),
            run,
            members: Vec::new(),
            interference: Vec::new(),
            claims: Vec::new(),
            validity: Vec::new(),
            plan: serde_json::to_value(plan).unwrap_or_default(),
        };
        Self {
            report,
            ceiling: None,
            plan_hashes: Vec::new(),
            issued_hashes: Some(Vec::new()),
            cpu: Vec::new(),
            server_cpu: Vec::new(),
            server: None,
            verdicts: Vec::new(),
            self_test: plan.target.self_test(),
            matrix: Vec::new(),
        }
    }

    /// What the client can reach when the target costs nothing.
    pub(super) fn set_ceiling(&mut self, ceiling: Ceiling) {
        self.ceiling = Some(ceiling);
    }

    /// Marks the report as one of a run that did not end by itself.
    pub(super) fn cut_short(&mut self) {
        self.report.interrupted = true;
    }

    /// Whether nothing was measured yet.
    pub(super) fn is_empty(&self) -> bool {
        self.report.members.is_empty()
    }

    /// Adds what a member found out.
    pub(super) fn add(&mut self, plan: &MemberPlan, outcome: Outcome) {
        if let SpecPlan::Kv(kv) = &plan.spec
            && kv.matrix
        {
            self.matrix.push((self.report.members.len(), kv.spec.routing.name()));
        }
        let Outcome { measured, section, load, server_cpu_ratio, prepared } = outcome;
        let seconds = measured.window.1.since(measured.window.0).as_secs_f64();
        let mut member = Member {
            name: plan.name.clone(),
            share: 1.0,
            load,
            start_s: self.report.run.duration_s + self.report.run.warm_up_s + measured.warm_up.as_secs_f64(),
            duration_s: seconds,
            operations: measured.operations,
            series: measured.series,
            ..Member::default()
        };
        member.attach(section);
        member.verdict = verdict::headline(&member);
        self.report.run.duration_s += seconds;
        self.report.run.warm_up_s += measured.warm_up.as_secs_f64();
        self.report.interrupted |= measured.interrupted;
        self.plan_hashes.push(measured.plan_hash);
        self.issued_hashes = self.issued_hashes.take().zip(measured.issued_hash).map(|(mut all, hash)| {
            all.push(hash);
            all
        });
        let inputs = inputs(&member, measured.cpu.as_ref(), measured.slip.p99_ns, self.ceiling, self.self_test);
        let (verdict, detail) = verdict::verdict(&inputs);
        self.verdicts.push((verdict, inputs.cpu_ratio, detail));
        self.cpu.extend(measured.cpu.map(|cpu| (seconds, cpu)));
        self.server_cpu.extend(server_cpu_ratio.map(|ratio| (seconds, ratio)));
        let named = |check: Validity| Validity { check: format!("{}: {}", plan.name, check.check), ..check };
        let of_kv = validity::kv(&member, &self.report.run.transport);
        self.report.validity.extend(of_kv.into_iter().chain(measured.validity).map(named));
        if let Some(words) = prepared {
            self.report.validity.push(named(Validity::new("data-set", ValidityStatus::Note, words)));
        }
        self.report.validity.extend(errors_check(&member).map(named));
        if !measured.errors.is_empty() {
            let examples = Validity::new("error-examples", ValidityStatus::Note, measured.errors.join(" · "));
            self.report.validity.push(named(examples));
        }
        self.report.members.push(member);
    }

    /// Adds what only the target itself knows.
    pub(super) fn note(&mut self, target: &Target) {
        self.server = target.embedded.as_ref().map(|server| (server.cores.max(1), server.peak_memory()));
        for note in target.notes() {
            self.report.validity.push(Validity::new("target", ValidityStatus::Note, note.clone()));
        }
    }

    /// The report, with what is judged over all members.
    pub(super) fn finish(mut self) -> RunReport {
        let report = &mut self.report;
        report.run.plan_hash = joined(&self.plan_hashes);
        report.run.issued_hash = self.issued_hashes.as_deref().filter(|hashes| !hashes.is_empty()).map(joined);
        report.clients = clients(&self.cpu, &self.server_cpu, self.server, self.ceiling);
        // The client's fault in any member is the run's; after that, the storage's.
        let severity = |verdict: Verdict| match verdict {
            Verdict::ClientLimited => 3,
            Verdict::StorageLimited => 2,
            Verdict::ScheduleLimited => 1,
            Verdict::SelfTest => 0,
        };
        let worst =
            self.verdicts.into_iter().max_by(|a, b| severity(a.0).cmp(&severity(b.0)).then(a.1.total_cmp(&b.1)));
        if let Some((verdict, _, detail)) = worst {
            (report.verdict, report.verdict_detail) = (verdict, detail);
        }
        matrix::fill(&mut report.members, &self.matrix);
        report.claims = claims::check(report, &gpufeed_profiles::claims());
        self.report
    }
}

/// The hash of several members; that of one is its own.
fn joined(hashes: &[String]) -> String {
    match hashes {
        [one] => one.clone(),
        many => format!("{:016x}", xxh3_64(many.concat().as_bytes())),
    }
}

/// Says when so many operations failed that the figures speak of the failures rather than of the storage.
fn errors_check(member: &Member) -> Option<Validity> {
    let failed: u64 = member.operations.iter().flat_map(|operation| operation.errors.values()).sum();
    let all = failed + member.operations.iter().map(|operation| operation.count).sum::<u64>();
    let status = match failed {
        0 => return None,
        failed if failed * 2 > all => ValidityStatus::Fail,
        _ => ValidityStatus::Warn,
    };
    let detail = format!("{failed} of {all} operations failed; latency and rates are of the others");
    Some(Validity::new("failed-operations", status, detail))
}

/// What the verdict on one member is decided by.
fn inputs(
    member: &Member,
    cpu: Option<&CpuUse>,
    slip_p99_ns: Option<u64>,
    ceiling: Option<Ceiling>,
    self_test: bool,
) -> verdict::Inputs {
    let sum = |figure: fn(&gpufeed_schema::Operation) -> f64| member.operations.iter().map(figure).sum::<f64>();
    let ops_per_s = sum(|operation| operation.ops_per_s);
    let per_s = |count: u64| count as f64 / member.duration_s.max(1e-9);
    let (offered_per_s, achieved_per_s) = match (&member.training, &member.kv, &member.rag) {
        (Some(training), _, _) => (Some(training.needed_bytes_per_s), training.bytes_per_s),
        (_, Some(kv), _) => (Some(per_s(kv.requests)), per_s(kv.completed)),
        (_, _, Some(rag)) => (Some(per_s(rag.queries)), per_s(rag.completed)),
        _ => (None, ops_per_s),
    };
    let busiest = member.operations.iter().max_by_key(|operation| operation.count);
    verdict::Inputs {
        self_test,
        cpu_ratio: cpu.map_or(0.0, |cpu| cpu.busiest_cpu_ratio),
        run_wait_ratio: cpu.and_then(|cpu| cpu.run_wait_ratio),
        steal_ratio: cpu.and_then(|cpu| cpu.steal_ratio),
        bytes_per_s: sum(|operation| operation.bytes_per_s),
        ceiling_bytes_per_s: ceiling.map(|ceiling| ceiling.bytes_per_s),
        ops_per_s,
        ceiling_ops_per_s: ceiling.map(|ceiling| ceiling.ops_per_s),
        load: member.load,
        offered_per_s,
        achieved_per_s,
        slip_p99_ns,
        service_p50_ns: busiest.and_then(|operation| operation.service_time.summary.p50_ns),
    }
}

/// Mean over members, weighted by their length.
fn mean(parts: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let seconds: f64 = parts.clone().map(|(seconds, _)| seconds).sum();
    (seconds > 0.0).then(|| parts.map(|(seconds, value)| seconds * value).sum::<f64>() / seconds)
}

fn clients(
    cpu: &[(f64, CpuUse)],
    server_cpu: &[(f64, f64)],
    server: Option<(u32, Option<u64>)>,
    ceiling: Option<Ceiling>,
) -> Vec<Client> {
    let of = |figure: fn(&CpuUse) -> Option<f64>| {
        mean(cpu.iter().filter_map(|(seconds, cpu)| Some((*seconds, figure(cpu)?))).collect::<Vec<_>>().into_iter())
    };
    let mut clients = Vec::new();
    if let Some((_, first)) = cpu.first() {
        clients.push(Client {
            role: "client".to_owned(),
            cores: first.cores,
            cpu_ratio: of(|cpu| Some(cpu.cpu_ratio)).unwrap_or_default(),
            run_wait_ratio: of(|cpu| cpu.run_wait_ratio),
            steal_ratio: of(|cpu| cpu.steal_ratio),
            ceiling_bytes_per_s: ceiling.map(|ceiling| ceiling.bytes_per_s),
            ceiling_ops_per_s: ceiling.map(|ceiling| ceiling.ops_per_s),
            peak_memory_bytes: cpu.iter().filter_map(|(_, cpu)| cpu.peak_memory_bytes).max(),
        });
    }
    if let (Some((cores, peak_memory_bytes)), Some(cpu_ratio)) = (server, mean(server_cpu.iter().copied())) {
        clients.push(Client {
            role: "embedded-server".to_owned(),
            cores,
            cpu_ratio,
            run_wait_ratio: None,
            steal_ratio: None,
            ceiling_bytes_per_s: None,
            ceiling_ops_per_s: None,
            peak_memory_bytes,
        });
    }
    clients
}
