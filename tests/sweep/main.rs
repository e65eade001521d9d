//! What takes minutes (`-- --ignored`), beside quick cases of the same.

#[path = "../common/child.rs"]
mod child;
#[path = "../common/faults.rs"]
mod faults;
#[path = "../common/joined.rs"]
mod joined;
#[path = "../common/process.rs"]
mod process;

mod checkers;
mod conformance;
mod cuda_faults;
mod dice;
mod hardware;
mod mutations;
mod one_layer;
mod peers_cpu;
mod process_faults;
mod reference;
mod smollm2;
mod strangers;
mod wild_json;
mod wild_template;
