//! Writes parts as safetensors files: which part goes into which file, and what is in front of them.
//!
//! Files come out as transformers' `save_pretrained` writes them, byte for byte: the same tensors in
//! the same shard, the same order within it, the same header. (Its conversion script for RWKV keeps
//! only the tensors of the last shard; that is not copied.)

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::json;

use super::target::TargetTensor;
use crate::error::Result;
use crate::files::output::OutputFile;
use crate::files::GrowingBytes;

/// The header is padded with spaces to a multiple of this, so that the numbers are aligned.
const ALIGNMENT: usize = 8;

/// Distributes the parts in order: a file is full when the next part would make it larger than
/// `bytes_max`, and a part that is larger by itself has a file of its own.
pub(super) fn split(parts: Vec<TargetTensor<'_>>, bytes_max: u64) -> Vec<Vec<TargetTensor<'_>>> {
    let mut shards = Vec::new();
    let (mut shard, mut shard_bytes) = (Vec::new(), 0);
    for part in parts {
        let bytes = part.size_bytes();
        if bytes > bytes_max {
            shards.push(vec![part]);
            continue;
        }
        if shard_bytes + bytes > bytes_max {
            shards.push(std::mem::take(&mut shard));
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        shard.push(part);
    }
    if !shard.is_empty() {
        shards.push(shard);
    }
    for shard in &mut shards {
        // Wide types first, so that every number is aligned, and the names as they sort.
        shard.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    }
    shards
}

/// What a shard's file is called.
pub(super) fn file_name(index: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".to_owned();
    }
    format!("model-{:05}-of-{count:05}.safetensors", index + 1)
}

/// Writes a file of these parts; calls `advance(n)` for every `n` bytes of numbers.
pub(super) fn write(
    file: &mut OutputFile,
    parts: &[TargetTensor<'_>],
    advance: &mut dyn FnMut(u64),
) -> Result<()> {
    file.write(&header(parts)?)?;
    for part in parts {
        part.write(&mut |bytes| {
            file.write(bytes)?;
            advance(bytes.len() as u64);
            Ok(())
        })?;
    }
    Ok(())
}

/// The length, and the JSON that says where each tensor is.
fn header(parts: &[TargetTensor<'_>]) -> Result<Vec<u8>> {
    let mut text = GrowingBytes::default();
    text.append(|text| text.write_all(&[0; 8]))?;
    text.append(|text| write!(text, r#"{{"__metadata__":{{"format":"pt"}}"#))?;
    let mut begin = 0;
    for part in parts {
        let end = begin + part.size_bytes();
        let (name, shape) = (json!(part.name), json!(part.shape));
        let dtype = part.dtype.safetensors_name();
        text.append(|text| {
            write!(
                text,
                r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#
            )
        })?;
        begin = end;
    }
    text.append(|text| text.write_all(b"}"))?;
    let n_spaces = text.len().next_multiple_of(ALIGNMENT) - text.len();
    text.append(|text| text.write_all(&[b' '; ALIGNMENT][..n_spaces]))?;
    let mut header = text.into_vec();
    let size = header.len() as u64 - 8;
    header[..8].copy_from_slice(&size.to_le_bytes());
    Ok(header)
}

/// The file that says which tensor is in which of several files.
pub(super) fn index(shards: &[Vec<TargetTensor<'_>>]) -> Result<Vec<u8>> {
    let mut weight_map = BTreeMap::new();
    let (mut n_params, mut size_bytes) = (0, 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = file_name(i, shards.len());
        for part in shard {
            weight_map.insert(&part.name, file.clone());
            n_params += part.len();
            size_bytes += part.size_bytes();
        }
    }
    let metadata = json!({"total_parameters": n_params, "total_size": size_bytes});
    let index = json!({"metadata": metadata, "weight_map": weight_map});
    let mut bytes = GrowingBytes::default();
    bytes.append(|bytes| writeln!(bytes, "{index:#}"))?;
    Ok(bytes.into_vec())
}
