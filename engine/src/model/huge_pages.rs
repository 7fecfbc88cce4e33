//! Puts weights that are used as they are stored into huge pages, before they are loaded: whoever loads them finds them in
//! the copies, in place as in a mapped file.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::load;
use super::origin::Origin;
use crate::checkpoint::{Checkpoint, RawTensor};
use crate::devices::plan::{Plan, Target};
use crate::error::Result;
use crate::files::HugePages;
use crate::quant::Quant;

/// The quant of a model that the CPU runs as a whole: of a part of one nothing is copied.
pub(super) fn quant_of_copies(plan: &Plan) -> Option<Quant> {
    match &plan.stages[..] {
        [stage] if matches!(stage.target, Target::Cpu) => Some(stage.quant),
        _ => None,
    }
}

/// Copies what the network of a plan would use in place from its files.
///
/// # Errors
/// A failed read, too little memory, damaged records.
pub(super) fn copy_to_huge_pages(origin: &mut Origin, plan: &Plan) -> Result<()> {
    let Some(quant) = quant_of_copies(plan) else {
        return Ok(());
    };
    match origin {
        Origin::Checkpoint(checkpoint) => copy_tensors(checkpoint, quant),
        Origin::ModelFile(model) if model.quant == quant && !model.file().is_in_memory() => {
            let file = model.file();
            let mut pages = HugePages::new([file.len()].into_iter(), file.name())?;
            pages.copy(file, 0..file.len())?;
            model.move_to(pages.finish()?);
            Ok(())
        }
        Origin::ModelFile(_) => Ok(()),
    }
}

fn copy_tensors(checkpoint: &mut Checkpoint, quant: Quant) -> Result<()> {
    let in_place = load::matrices(checkpoint)
        .filter(|(tensor, raw)| load::is_used_in_place(tensor, raw, quant))
        .filter(|(_, raw)| !raw.file.is_in_memory());
    let names: BTreeSet<String> = in_place.map(|(tensor, _)| tensor.raw_name()).collect();
    let tensors = checkpoint.tensors.iter_mut();
    let tensors = tensors.filter(|(name, _)| names.contains(*name));
    let mut tensors: Vec<&mut RawTensor> = tensors.map(|(_, tensor)| tensor).collect();
    if tensors.is_empty() {
        return Ok(());
    }
    let lengths = tensors.iter().map(|tensor| tensor.end() - tensor.offset);
    let mut pages = HugePages::new(lengths, &checkpoint.place)?;
    let mut places: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for tensor in &mut tensors {
        // Nobody can ask the record any more that the tensor was in.
        tensor.check()?;
        tensor.checksum = None;
        // A tied head is the embedding again.
        let found = (tensor.file.name().to_owned(), tensor.offset);
        tensor.offset = match places.get(&found) {
            Some(place) => *place,
            None => {
                let place = pages.copy(&tensor.file, tensor.offset..tensor.end())?;
                places.insert(found, place);
                place
            }
        };
    }
    let copies = pages.finish()?;
    for tensor in tensors {
        tensor.file = copies.clone();
    }
    Ok(())
}
