//! The built-in model answers questions that it was not trained on: a numeric mistake anywhere shows
//! here in plain language.

use std::sync::atomic::AtomicBool;

use crate::{again, gpus};
use chaski::chat::{Chat, ChatStyle, Message};
use chaski::config::Config;
use chaski::engine::{self, Device, Model, Split, silent};
use chaski::sampler::SamplingOptions;
use chaski::session::{Next, Session, StopCriteria};
use chaski::source::Source;
use chaski::team::Team;
use chaski::tokenizer::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Question {
    messages: Vec<Message>,
    answer: String,
}

fn questions() -> Vec<Question> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/demo/questions.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let questions: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(questions.len(), 200);
    questions
}

/// Emulated tensor cores cut off where hardware's do.
const TRUNCATED: (&str, &str) = ("CHASKI_EMULATE_PRODUCTS", "truncated");

/// In this variable, a process that is one of several knows its number.
const PROCESS: &str = "CHASKI_TEST_PROCESS";
const PROCESSES: usize = 2;

struct Demo {
    session: Session,
    tokenizer: Tokenizer,
    chat: Chat,
    config: Config,
}

impl Demo {
    fn on_the_cpu() -> Self {
        Self::on_ranks(1)
    }

    /// Split over ranks on emulated GPUs of these numbers.
    fn on_gpus(ordinals: &[u32]) -> Self {
        Self::on(gpus::team(&Source::Demo, engine::Options::default(), 1, ordinals).unwrap())
    }

    /// Split over so many ranks.
    fn on_ranks(world: usize) -> Self {
        let split = Split { tensor_parallel: Some(world), ..Split::default() };
        let options = engine::Options { device: Device::Cpu, split, ..engine::Options::default() };
        Self::on(Model::of(Source::Demo, options).unwrap().load(&silent()).unwrap().team)
    }

    fn on(team: impl Into<Team>) -> Self {
        let source = Source::Demo;
        let config = Config::load(&source).unwrap();
        let tokenizer = Tokenizer::load(&source).unwrap();
        let chat = Chat::load(&source, &tokenizer, ChatStyle::Native).unwrap();
        Self { session: Session::new(team), tokenizer, chat, config }
    }

    fn answer(&mut self, messages: &[Message]) -> String {
        let prompt = self.chat.encode(&self.tokenizer, &messages.into(), true).unwrap();
        let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
        let interrupt = AtomicBool::new(false);
        let stop =
            StopCriteria { max_tokens: 64, stop_ids: &self.config.stop_ids, interrupt: &interrupt };
        let mut ids = Vec::new();
        let receive = |id| {
            ids.push(id);
            Ok(Next::Continue)
        };
        self.session.generate(&prompt, &greedy, stop, receive).unwrap();
        self.tokenizer.decode(&ids, true).unwrap()
    }
}

#[test]
fn at_least_95_percent_of_200_held_out_questions_are_answered_right() {
    let mut demo = Demo::on_the_cpu();
    let mut wrong = Vec::new();
    for Question { messages, answer } in questions() {
        let given = demo.answer(&messages);
        if given != answer {
            let asked = messages[messages.len() - 1].text();
            wrong.push(format!("{asked} -> {given}, not {answer}"));
        }
    }
    assert!(wrong.len() <= 10, "{} of 200 wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn two_ranks_answer_as_one() {
    let (mut one, mut two) = (Demo::on_the_cpu(), Demo::on_ranks(2));
    for Question { messages, .. } in questions().into_iter().step_by(5) {
        let asked = messages[messages.len() - 1].text();
        assert_eq!(two.answer(&messages), one.answer(&messages), "{asked}");
    }
}

/// On one question of `every`.
fn assert_gpus_agree(ordinals: &[u32], every: usize) {
    assert_gpus_agree_from(0, ordinals, every);
}

fn assert_gpus_agree_from(first: usize, ordinals: &[u32], every: usize) {
    let (mut cpu, mut gpus) = (Demo::on_the_cpu(), Demo::on_gpus(ordinals));
    for Question { messages, .. } in questions().into_iter().skip(first).step_by(every) {
        let asked = messages[messages.len() - 1].text();
        assert_eq!(gpus.answer(&messages), cpu.answer(&messages), "{ordinals:?}: {asked}");
    }
}

#[test]
fn an_emulated_gpu_answers_as_the_cpu() {
    assert_gpus_agree(&[0], 10);
}

#[test]
fn an_emulated_gpu_answers_as_the_cpu_where_tensor_cores_truncate() {
    again::end(again::start("demo::an_emulated_gpu_answers_as_the_cpu", &[TRUNCATED]));
}

#[test]
fn two_emulated_gpus_answer_as_the_cpu() {
    assert_gpus_agree(&[0, 1], 50);
}

/// As [`assert_gpus_agree`], in [`PROCESSES`]: the emulated GPUs of one process take turns on one core.
/// `test` is the one that calls this.
fn assert_gpus_agree_in_processes(test: &str, ordinals: &[u32], every: usize) {
    if let Ok(process) = std::env::var(PROCESS) {
        let first = every * process.parse::<usize>().unwrap();
        return assert_gpus_agree_from(first, ordinals, every * PROCESSES);
    }
    let start = |process: usize| again::start(test, &[(PROCESS, &process.to_string())]);
    let processes: Vec<_> = (0..PROCESSES).map(start).collect();
    processes.into_iter().for_each(again::end);
}

#[test]
#[ignore = "takes minutes"]
fn an_emulated_gpu_answers_all_questions_as_the_cpu() {
    let test = "demo::an_emulated_gpu_answers_all_questions_as_the_cpu";
    assert_gpus_agree_in_processes(test, &[0], 1);
}

#[test]
#[ignore = "takes minutes"]
fn two_emulated_gpus_answer_every_fourth_question_as_the_cpu() {
    let test = "demo::two_emulated_gpus_answer_every_fourth_question_as_the_cpu";
    assert_gpus_agree_in_processes(test, &[0, 1], 4);
}

#[test]
#[ignore = "takes minutes"]
fn an_emulated_gpu_answers_all_questions_where_tensor_cores_truncate() {
    let test = "demo::an_emulated_gpu_answers_all_questions_as_the_cpu";
    again::end(again::start(test, &[TRUNCATED]));
}

#[test]
fn the_model_is_at_most_four_megabytes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");
    let files = std::fs::read_dir(folder).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 4_000_000, "{bytes} bytes");
}
