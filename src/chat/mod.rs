//! TEMPORARY
use crate::error::Result;
use crate::source::Source;
use crate::tokenizer::Tokenizer;
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}
pub enum ChatStyle {
    Auto,
    Native,
    Template,
}
pub struct Chat {
    stop: Vec<u32>,
}
impl Chat {
    pub fn load(_s: &Source, t: &Tokenizer, _c: ChatStyle, _d: Option<&str>) -> Result<Chat> {
        Ok(Chat { stop: ["<|eot_id|>", "<|eom_id|>"].iter().filter_map(|x| t.id(x)).collect() })
    }
    pub fn encode(&self, t: &Tokenizer, m: &[Message], add: bool) -> Result<Vec<u32>> {
        let mut v = vec![t.bos().unwrap()];
        for m in m {
            v.extend(self.head(t, &m.role)?);
            v.extend(t.encode_text(m.content.trim())?);
            v.push(t.id("<|eot_id|>").unwrap());
        }
        if add {
            v.extend(self.head(t, "assistant")?);
        }
        Ok(v)
    }
    fn head(&self, t: &Tokenizer, r: &str) -> Result<Vec<u32>> {
        let mut v = vec![t.id("<|start_header_id|>").unwrap()];
        v.extend(t.encode_text(r)?);
        v.push(t.id("<|end_header_id|>").unwrap());
        v.extend(t.encode_text("\n\n")?);
        Ok(v)
    }
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }
}
