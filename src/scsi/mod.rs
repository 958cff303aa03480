//! SCSI commands.
