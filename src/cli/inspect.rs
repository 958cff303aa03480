//! `roost inspect FILE`: what a disk file is, and what it is a child of. To say that it is damaged is an answer, no failure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Globals;
use super::error::{BRING_PARENT_BACK, Error};
use super::output::{bytes, local_time, print, print_json};
use crate::disk::SECTOR;
use crate::disk::checksum::{Checksum, Fitness, fitness};
use crate::disk::file::{Access, File};
use crate::disk::inspect::{DiskFormat, Inspection, LayerFacts, ParentFacts, inspect};
use crate::disk::pending::PendingMap;
use crate::disk::vhd::facts::FooterCopy;
use crate::fleet::Timestamp;
use crate::sys;

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
        let size = facts.vhd.as_ref().and_then(|vhd| vhd.block_size);
        line(
            "blocks",
            format!("{present} of {all}{}", size.map_or_else(String::new, |size| format!(", {} each", bytes(size)))),
        );
    }
    if let Some(sectors) = facts.vhd.as_ref().and_then(|vhd| vhd.sectors_here) {
        line("sectors", format!("{sectors} of {} are in this file", facts.virtual_size / SECTOR));
    }
    if let Some(id) = facts.unique_id {
        line("identity", id.to_string());
    }
    if let Some(id) = facts.data_write_id {
        line("contents", id.to_string());
    }
    if let Some(creator) = &facts.creator {
        let os = facts.vhd.as_ref().map_or_else(String::new, |vhd| format!(" on {}", vhd.creator_os));
        line("made by", format!("{creator}{os}"));
    }
    if let Some(vhd) = &facts.vhd {
        line("made at", local_time(Timestamp(vhd.created.saturating_mul(1_000))));
        if vhd.original_size != facts.virtual_size {
            line("", format!("then a disk of {} bytes", vhd.original_size));
        }
        let geometry = vhd.geometry;
        line(
            "geometry",
            format!("{} cylinders, {} heads, {} sectors", geometry.cylinders, geometry.heads, geometry.sectors),
        );
        for FooterCopy { offset, sound } in &vhd.footers {
            let state = sound.as_ref().map_or_else(|why| format!("bad: {why}"), |()| "sound".to_owned());
            line("footer", format!("at byte {offset}: {state}"));
        }
    }
    if let Some(ParentFacts { name, id, tried, found }) = &facts.parent {
        line("parent", format!("{name} ({id})"));
        for (kind, text) in facts.vhd.iter().flat_map(|vhd| &vhd.locators) {
            line("", format!("{kind} says {text}"));
        }
        for tried in tried {
            line("", format!("{} {}", if tried.exists() { "there is" } else { "there is no" }, tried.display()));
        }
        if let Some(found) = found {
            line("", format!("found at {}", found.display()));
        }
    }
    match pending(facts) {
        None => {}
        Some(Pending { sectors: 0, path }) => line("pending", format!("nothing, in {}", path.display())),
        Some(Pending { sectors, path }) => {
            line(
                "pending",
                format!("{sectors} sectors, noted in {}; the next opening by roost puts them in", path.display()),
            );
        }
    }
    match record(facts) {
        None => {}
        Some(Ok((blake3, fitness))) => {
            line("checksum", format!("BLAKE3 {blake3}"));
            line("", fitness);
        }
        Some(Err(why)) => line("checksum", why),
    }
    text
}

/// What is noted of a client's disk beside it: `STATE/disks/NAME.vhd` has its map in `STATE/pending/NAME`.
struct Pending {
    path: PathBuf,
    /// Sectors of its last writes whose bits are not in the file yet.
    sectors: u64,
}

fn pending(facts: &LayerFacts) -> Option<Pending> {
    let folder = facts.path.parent().filter(|folder| folder.file_name().is_some_and(|name| name == "disks"))?;
    let path = folder.parent()?.join("pending").join(facts.path.file_stem()?);
    // Only looked at: a map that is not there is not made.
    let map = File::open(&path, Access::Peek).ok()?;
    let (_, records) = PendingMap::open(Box::new(map), facts.unique_id?, &sys::boot_id().ok()?).ok()?;
    Some(Pending { path, sectors: facts.sectors_pending(&records) })
}

/// The recorded checksum of a master, and what a look at the file tells.
fn record(facts: &LayerFacts) -> Option<Result<(String, String), String>> {
    let record = match Checksum::load(&facts.path) {
        Ok(record) => record?,
        Err(error) => return Some(Err(error.to_string())),
    };
    let fitness = match fitness(&facts.path) {
        Ok(Fitness::Changed(why)) => format!("it is not what was imported: {why}"),
        Ok(Fitness::Touched) => "the file was touched since that was recorded: `roost verify` compares it".to_owned(),
        Ok(_) => "the file was not touched since that was recorded".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(Ok((record.blake3, fitness)))
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
        "vhd": facts.vhd.as_ref().map(|vhd| json!({
            "block_size": vhd.block_size,
            "sectors_here": vhd.sectors_here,
            "created_ms": vhd.created.saturating_mul(1_000),
            "creator_os": vhd.creator_os,
            "original_size": vhd.original_size,
            "geometry": {
                "cylinders": vhd.geometry.cylinders, "heads": vhd.geometry.heads, "sectors": vhd.geometry.sectors,
            },
            "footers": vhd.footers.iter().map(|FooterCopy { offset, sound }| {
                json!({ "offset": offset, "sound": sound.is_ok(), "why": sound.as_ref().err() })
            }).collect::<Vec<_>>(),
            "locators": vhd.locators.iter().map(|(kind, text)| json!({ "kind": kind, "text": text })).collect::<Vec<_>>(),
        })),
        "parent": facts.parent.as_ref().map(|parent| json!({
            "name": parent.name,
            "identity": parent.id.to_string(),
            "tried": parent.tried,
            "found": parent.found,
        })),
        "pending_sectors": pending(facts).map(|pending| pending.sectors),
        "checksum": record(facts).map(|record| match record {
            Ok((blake3, fitness)) => json!({ "blake3": blake3, "state": fitness }),
            Err(why) => json!({ "blake3": null, "state": why }),
        }),
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
