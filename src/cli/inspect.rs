//! `roost inspect FILE`: what a disk file is, and what it is a child of. To say that it is damaged is an answer, no failure.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::Globals;
use super::error::{BRING_PARENT_BACK, Error};
use super::output::{bytes, print, print_json};
use crate::disk::inspect::{DiskFormat, Inspection, LayerFacts, ParentFacts, inspect};

pub(super) fn run(globals: &Globals, file: &Path) -> Result<(), Error> {
    let inspection = inspect(file)?;
    if globals.json { print_json(&value(&inspection)) } else { print(&page(&inspection)) }
}

fn page(inspection: &Inspection) -> String {
    let path = inspection.path.display();
    let mut page = match &inspection.format {
        Ok(_) => String::new(),
        Err(Some(foreign)) => format!("{path}: {}\n  help: {}\n", foreign.name, foreign.advice(&inspection.path)),
        Err(None) => format!("{path}: no disk: it is neither of a known format nor whole sectors of 512 bytes\n"),
    };
    inspection.layers.iter().for_each(|facts| page += &layer(facts));
    if inspection.layers.len() > 1 {
        let all = if inspection.complete { "complete" } else { "not complete: the disk cannot be read" };
        page += &format!("chain of {} files, {all}\n", inspection.layers.len());
    }
    inspection.warnings.iter().for_each(|warning| page += &format!("warning: {warning}\n"));
    if !inspection.complete && inspection.layers.iter().any(|layer| layer.parent.is_some()) {
        page += &format!("  help: {BRING_PARENT_BACK}\n");
    }
    page
}

fn layer(facts: &LayerFacts) -> String {
    let mut text = format!("{}\n", facts.path.display());
    let mut line = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {key:<8}  {value}");
    };
    line("format", facts.format.to_string());
    line("disk", format!("{} ({} bytes)", bytes(facts.virtual_size), facts.virtual_size));
    line("file", format!("{} long, {} on the host", bytes(facts.file_size), bytes(facts.allocated)));
    if let Some((present, all)) = facts.blocks {
        line("blocks", format!("{present} of {all}"));
    }
    if let Some(id) = facts.unique_id {
        line("identity", id.to_string());
    }
    if let Some(id) = facts.data_write_id {
        line("contents", id.to_string());
    }
    if let Some(creator) = &facts.creator {
        line("made by", creator.clone());
    }
    if let Some(ParentFacts { name, id, tried, found }) = &facts.parent {
        line("parent", format!("{name} ({id})"));
        match found {
            Some(found) => line("", format!("found at {}", found.display())),
            None => tried.iter().for_each(|tried| line("", format!("not at {}", tried.display()))),
        }
    }
    text
}

fn value(inspection: &Inspection) -> Value {
    let (format, foreign) = match &inspection.format {
        Ok(format) => (Some(word(*format)), None),
        Err(foreign) => (None, foreign.as_ref().map(|foreign| foreign.name)),
    };
    json!({
        "path": inspection.path,
        "format": format,
        "foreign": foreign,
        "complete": inspection.complete,
        "layers": inspection.layers.iter().map(layer_value).collect::<Vec<_>>(),
        "warnings": inspection.warnings,
    })
}

fn layer_value(facts: &LayerFacts) -> Value {
    json!({
        "path": facts.path,
        "format": word(facts.format),
        "disk_size": facts.virtual_size,
        "file_size": facts.file_size,
        "bytes_on_host": facts.allocated,
        "blocks": facts.blocks.map(|(present, all)| json!({ "present": present, "all": all })),
        "block_size": facts.block_size,
        "logical_sector": facts.sectors.0,
        "physical_sector": facts.sectors.1,
        "identity": facts.unique_id.map(|id| id.to_string()),
        "data_write": facts.data_write_id.map(|id| id.to_string()),
        "creator": facts.creator,
        "parent": facts.parent.as_ref().map(|parent| json!({
            "name": parent.name,
            "identity": parent.id.to_string(),
            "tried": parent.tried,
            "found": parent.found,
        })),
    })
}

fn word(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::VhdFixed => "vhd-fixed",
        DiskFormat::VhdDynamic => "vhd-dynamic",
        DiskFormat::VhdDifferencing => "vhd-differencing",
        DiskFormat::VhdxFixed => "vhdx-fixed",
        DiskFormat::VhdxDynamic => "vhdx-dynamic",
        DiskFormat::VhdxDifferencing => "vhdx-differencing",
    }
}
