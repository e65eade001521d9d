//! What tests have a team of ranks do.

use chaski::model::Logits;
use chaski::team::Team;

/// The logits of all of `ids`, computed in steps of `chunk` tokens.
pub fn prefill(team: &mut Team, ids: &[u32], chunk: usize) -> Vec<f32> {
    team.rewind(0).unwrap();
    team.expect(ids.len()).unwrap();
    ids.chunks(chunk).flat_map(|ids| team.prefill(ids, Logits::All).unwrap().to_vec()).collect()
}
