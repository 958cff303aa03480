//! `content-by-wxtla FILE`: the content of a VHD or VHDX through its chain, to standard output, as wxtla reads it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use wxtla::images::vhd::VhdImage;
use wxtla::images::vhdx::VhdxImage;
use wxtla::{
    ByteSource, ByteSourceHandle, FileDataSource, RelatedPathBuf, RelatedSourceRequest, RelatedSourceResolver, SourceHints,
    SourceIdentity,
};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Finds parents: its paths begin at the root.
struct Root;

impl RelatedSourceResolver for Root {
    fn resolve(&self, request: &RelatedSourceRequest) -> wxtla::Result<Option<ByteSourceHandle>> {
        let path = Path::new("/").join(request.path.to_string());
        if !path.is_file() {
            return Ok(None);
        }
        Ok(Some(Arc::new(FileDataSource::open(path)?)))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which file?")?;
    let path = std::path::absolute(path)?;
    let source: ByteSourceHandle = Arc::new(FileDataSource::open(&path)?);
    let from_root = path.to_str().ok_or("a path that is no text")?.trim_start_matches('/');
    let identity = SourceIdentity::new(RelatedPathBuf::from_relative_path(from_root)?);
    let hints = SourceHints::new().with_resolver(&Root).with_source_identity(&identity);
    let disk: Box<dyn ByteSource> = if path.extension().is_some_and(|extension| extension == "vhdx") {
        Box::new(VhdxImage::open_with_hints(source, hints)?)
    } else {
        Box::new(VhdImage::open_with_hints(source, hints)?)
    };
    let (size, mut at) = (disk.size()?, 0);
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; PIECE];
    while at < size {
        let len = buffer.len().min(usize::try_from(size - at)?);
        disk.read_exact_at(at, &mut buffer[..len])?;
        out.write_all(&buffer[..len])?;
        at += len as u64;
    }
    Ok(out.flush()?)
}
