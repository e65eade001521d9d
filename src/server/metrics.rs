//! What a server has done, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::task::Done;

#[derive(Debug, Default)]
pub struct Metrics {
    /// By endpoint and status.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    prompt_tokens: Count,
    cached_tokens: Count,
    generated_tokens: Count,
    pub running: Count,
    first_token: Histogram,
    whole: Histogram,
}

/// A number that goes up, or to where it is set.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    pub fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// In seconds, up to which each bucket goes; one more has no end.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

#[derive(Debug, Default)]
struct Histogram {
    /// Of each bucket alone.
    counts: [Count; BOUNDS.len() + 1],
    microseconds: Count,
}

impl Histogram {
    fn add(&self, time: Duration) {
        let bucket = BOUNDS.iter().position(|bound| time.as_secs_f64() <= *bound);
        self.counts[bucket.unwrap_or(BOUNDS.len())].add(1);
        self.microseconds.add(time.as_micros() as usize);
    }

    fn write(&self, name: &str, help: &str, to: &mut String) {
        head(name, help, "histogram", to);
        let mut sum = 0;
        for (bound, count) in BOUNDS.iter().zip(&self.counts) {
            sum += count.get();
            line(to, format_args!("{name}_bucket{{le=\"{bound}\"}} {sum}"));
        }
        sum += self.counts[BOUNDS.len()].get();
        line(to, format_args!("{name}_bucket{{le=\"+Inf\"}} {sum}"));
        line(to, format_args!("{name}_sum {}", self.microseconds.get() as f64 / 1e6));
        line(to, format_args!("{name}_count {sum}"));
    }
}

impl Metrics {
    /// A request was answered, or is about to be.
    pub fn request(&self, endpoint: &str, status: u16) {
        let mut requests = self.requests.lock().expect("no panics in it");
        *requests.entry((endpoint.to_owned(), status)).or_default() += 1;
    }

    /// An answer has ended, so long after its request came.
    pub fn ended(&self, done: &Done, whole: Duration) {
        self.prompt_tokens.add(done.prompt_tokens);
        self.cached_tokens.add(done.cached_tokens);
        self.generated_tokens.add(done.tokens);
        if done.tokens > 0 {
            self.first_token.add(done.first_token);
        }
        self.whole.add(whole);
    }

    /// The page, where so many tasks wait.
    pub fn page(&self, waiting: usize) -> String {
        let mut page = String::new();
        head("chaski_requests_total", "Requests by endpoint and status.", "counter", &mut page);
        for ((endpoint, status), count) in self.requests.lock().expect("no panics in it").iter() {
            let labels = format_args!("{{endpoint=\"{endpoint}\",status=\"{status}\"}}");
            line(&mut page, format_args!("chaski_requests_total{labels} {count}"));
        }
        for (name, help, kind, value) in [
            ("prompt_tokens_total", "Tokens of prompts.", "counter", self.prompt_tokens.get()),
            (
                "cached_tokens_total",
                "Tokens of prompts that were in the cache.",
                "counter",
                self.cached_tokens.get(),
            ),
            (
                "generated_tokens_total",
                "Tokens of answers.",
                "counter",
                self.generated_tokens.get(),
            ),
            ("running", "Answers that are being generated.", "gauge", self.running.get()),
            ("waiting", "Answers that wait for their turn.", "gauge", waiting as u64),
        ] {
            head(&format!("chaski_{name}"), help, kind, &mut page);
            line(&mut page, format_args!("chaski_{name} {value}"));
        }
        let name = "chaski_first_token_seconds";
        self.first_token.write(name, "From a request to its first token.", &mut page);
        self.whole.write("chaski_answer_seconds", "From a request to its end.", &mut page);
        page
    }
}

fn head(name: &str, help: &str, kind: &str, to: &mut String) {
    line(to, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(to: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(to, "{text}").expect("a string takes everything");
}
