//! TFTP, as a pure state machine.
