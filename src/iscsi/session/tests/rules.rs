//! The rules of RFC 7143 that a command, a function or a text can break, one by one.

use std::sync::{Arc, Mutex};

use super::super::*;
use super::pair::*;
use crate::scsi::{BLOCK, InitiatorPort};

/// Data may come with the command and after it, up to 2048 bytes.
fn eager() -> Params {
    Params { initial_r2t: false, first_burst: 2048, ..Params::default() }
}

/// Data comes only when it is asked for.
fn patient() -> Params {
    Params { immediate_data: false, ..Params::default() }
}

fn write(blocks: u16) -> (u32, [u8; 10]) {
    (u32::from(blocks) * BLOCK as u32, ten(0x2A, 8, blocks))
}

const DATA_PHASE_ERROR: Option<[u8; 3]> = Some([0xB, 0x4B, 0]);
const WRONG_AMOUNT: Option<[u8; 3]> = Some([0xB, 0x0C, 0x0D]);
const UNEXPECTED_DATA: Option<[u8; 3]> = Some([0xB, 0x0C, 0x0C]);

/// The transfer tag of the one R2T that came, and what it asks for.
fn asked(pair: &mut Pair) -> (u32, u32, u32) {
    let r2t = pair.one().header;
    assert_eq!(r2t.opcode(), opcode::R2T);
    (r2t.word(20), r2t.word(40), r2t.word(44))
}

fn function_response(pair: &mut Pair, itt: u32) -> u8 {
    let header = pair.one().header;
    assert_eq!((header.opcode(), header.itt()), (opcode::TASK_MANAGEMENT_RESPONSE, itt));
    header.0[2]
}

fn rejected(pair: &mut Pair, reason: u8) {
    let pdu = pair.one();
    assert_eq!((pdu.header.opcode(), pdu.header.0[2]), (opcode::REJECT, reason), "{pdu:02x?}");
    assert_eq!((pdu.header.itt(), pdu.header.flags()), (NO_TAG, FINAL));
}

#[test]
fn a_command_twice_or_outside_the_window_is_dropped_silently() {
    let mut pair = Pair::ready(Params::default());
    let due = pair.cmd_sn;
    let command = |cmd_sn| Pair::header(7, FINAL, LUN_0, 0, &TEST_UNIT_READY).with(24, cmd_sn);
    for wrong in [due.wrapping_sub(1), due.wrapping_sub(100), due.wrapping_add(WINDOW), due ^ 0x8000_0000] {
        pair.raw(command(wrong), &[]).unwrap();
        pair.silence();
    }
    pair.cmd_sn = pair.cmd_sn.wrapping_add(1);
    pair.raw(command(due), &[]).unwrap();
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn a_missing_command_ends_the_connection() {
    let mut pair = Pair::ready(Params::default());
    let (expected, got) = (pair.cmd_sn, pair.cmd_sn.wrapping_add(1));
    let command = Pair::header(7, FINAL, LUN_0, 0, &TEST_UNIT_READY).with(24, got);
    assert_eq!(pair.raw(command, &[]), Err(ProtocolError::Gap { got, expected }));
}

#[test]
fn a_pdu_of_the_targets_own_ends_the_connection() {
    for wrong in [opcode::NOP_IN, opcode::DATA_IN, opcode::REJECT, 0x0F] {
        let mut pair = Pair::ready(Params::default());
        let header = Header::new(0x40 | wrong, FINAL);
        assert_eq!(pair.raw(header, &[]), Err(ProtocolError::Opcode(wrong)));
    }
}

#[test]
fn immediate_commands_take_no_number_and_are_limited() {
    let mut pair = Pair::ready(Params::default());
    for number in 0..=MAX_IMMEDIATE as u32 {
        pair.immediate(Pair::header(number, FINAL, LUN_0, 0, &ten(0x35, 0, 0)), &[]);
    }
    rejected(&mut pair, reject::TOO_MANY_IMMEDIATE);
    assert_eq!(pair.session.tasks(), MAX_IMMEDIATE);
    pair.run();
    assert_eq!(pair.take().len(), MAX_IMMEDIATE);
    pair.immediate(Pair::header(9, FINAL, LUN_0, 0, &TEST_UNIT_READY), &[]);
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn a_task_tag_in_use_is_rejected_and_its_number_is_taken() {
    let mut pair = Pair::ready(Params::default());
    let itt = pair.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
    pair.numbered(Pair::header(itt, FINAL, LUN_0, 0, &TEST_UNIT_READY), &[]);
    rejected(&mut pair, reject::TASK_IN_PROGRESS);
    pair.numbered(Header::new(opcode::TASK_MANAGEMENT, FINAL | 5).with(16, itt), &[]);
    rejected(&mut pair, reject::TASK_IN_PROGRESS);
    pair.run();
    assert_eq!(pair.one().header.itt(), itt);
}

#[test]
fn a_reject_carries_the_header_that_it_is_about() {
    let mut pair = Pair::ready(Params::default());
    let snack = Header::new(opcode::SNACK, FINAL).with(16, 5).with(20, NO_TAG).with(44, 3);
    pair.raw(snack, &[]).unwrap();
    let pdu = pair.one();
    assert_eq!(pdu.data[..], snack.0);
    let mut must = [0; 24];
    must[..4].copy_from_slice(&[0x3F, 0x80, 0x03, 0]);
    must[7] = 48;
    must[16..20].fill(0xFF);
    assert_eq!(pdu.header.0[..24], must);
    assert_eq!(pdu.header.0[36..], [0; 12]);
}

#[test]
fn data_out_that_breaks_its_sequence_fails_the_task_when_the_sequence_ends() {
    // DataSN, offset and length of a first PDU; the second ends the sequence.
    for (data_sn, offset, length, must) in [
        (1, 0, 512, DATA_PHASE_ERROR),
        (0, 512, 512, DATA_PHASE_ERROR),
        (0, 0xFFFF_FFFF, 512, DATA_PHASE_ERROR),
        (0, 0, 2048, WRONG_AMOUNT),
        (0, 0, 100, DATA_PHASE_ERROR), // the second one leaves a gap
    ] {
        let mut pair = Pair::ready(patient());
        let before = pair.disk.clone();
        let (expected, cdb) = write(2);
        let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
        let (ttt, ..) = asked(&mut pair);
        let other = pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
        assert_eq!(pair.one().header.itt(), other, "no other task is disturbed");
        pair.data_out(itt, ttt, data_sn, offset, false, &vec![1; length]);
        pair.silence();
        pair.data_out(itt, ttt, 1, 512, true, &[1; 512]);
        let answer = pair.one();
        assert_eq!(sense(&answer), must, "{data_sn} {offset} {length}");
        assert_eq!((residual(&answer.header), answer.header.word(36)), (1024, 1));
        pair.run();
        assert!(pair.disk == before, "nothing of it is written");
        assert_eq!((pair.session.tasks(), pair.session.solicited), (0, 0));
    }
}

#[test]
fn a_sequence_that_ends_early_fails_the_task() {
    let mut pair = Pair::ready(patient());
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    pair.data_out(itt, ttt, 0, 0, true, &[1; 512]);
    assert_eq!(sense(&pair.one()), WRONG_AMOUNT);
}

#[test]
fn data_out_for_nothing_that_waits_for_it_is_discarded() {
    let mut pair = Pair::ready(patient());
    pair.data_out(99, NO_TAG, 0, 0, true, &[1; 512]);
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    pair.data_out(itt, ttt.wrapping_add(1), 0, 0, true, &[1; 512]);
    pair.data_out(itt, NO_TAG, 0, 0, true, &[1; 512]);
    pair.silence();
    pair.data_out(itt, ttt, 0, 0, true, &[2; 1024]);
    pair.data_out(itt, ttt, 0, 0, true, &[3; 1024]);
    pair.run();
    assert_eq!(sense(&pair.one()), None);
    assert!(pair.disk[8 * 512..10 * 512].iter().all(|byte| *byte == 2));
}

#[test]
fn an_r2t_names_the_unit_as_its_command_did() {
    /// LUN 0 by flat space addressing.
    const FLAT_LUN_0: [u8; 8] = [0x40, 0, 0, 0, 0, 0, 0, 0];
    let mut pair = Pair::ready(patient());
    let (expected, cdb) = write(2);
    let itt = pair.new_itt();
    pair.numbered(Pair::header(itt, FINAL | WRITE, FLAT_LUN_0, expected, &cdb), &[]);
    assert_eq!(pair.one().header.lun(), FLAT_LUN_0);
}

#[test]
fn empty_data_out_pdus_hold_no_memory() {
    let mut pair = Pair::ready(patient());
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    (0..1000).for_each(|data_sn| pair.data_out(itt, ttt, data_sn, 0, false, &[]));
    (0..1023).for_each(|at| pair.data_out(itt, ttt, 1000 + at, at, false, &[7]));
    pair.data_out(itt, ttt, 2023, 1023, true, &[7]);
    let [Effect::Write { data, .. }] = &pair.pending[..] else { panic!("{:?}", pair.pending) };
    assert_eq!(data.len(), 2, "the first piece, and all small ones after it");
    pair.run();
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn unsolicited_data_beyond_what_was_agreed_fails_the_task() {
    let (expected, cdb) = write(8);
    // More immediate data than a first burst.
    let mut pair = Pair::ready(eager());
    pair.command(FINAL | WRITE, expected, &cdb, &[1; 2560]);
    assert_eq!(sense(&pair.one()), WRONG_AMOUNT);
    // None was agreed on, or none was announced.
    let mut pair = Pair::ready(patient());
    pair.command(FINAL | WRITE, expected, &cdb, &[1; 512]);
    assert_eq!(sense(&pair.one()), UNEXPECTED_DATA);
    let mut pair = Pair::ready(eager());
    pair.command(FINAL, 0, &cdb, &[1; 512]);
    assert_eq!(sense(&pair.one()), UNEXPECTED_DATA);
    // Immediate data and Data-Out PDUs together are more than a first burst: the error waits for F.
    let mut pair = Pair::ready(eager());
    let itt = pair.command(WRITE, expected, &cdb, &[1; 512]);
    pair.data_out(itt, NO_TAG, 0, 512, false, &[1; 1024]);
    pair.data_out(itt, NO_TAG, 1, 1536, false, &[1; 1024]);
    pair.silence();
    pair.data_out(itt, NO_TAG, 2, 2560, true, &[1; 512]);
    assert_eq!(sense(&pair.one()), WRONG_AMOUNT);
    assert!(pair.pending.is_empty());
}

#[test]
fn unsolicited_data_out_where_an_r2t_is_due_fails_the_task() {
    let mut pair = Pair::ready(Params::default());
    let (expected, cdb) = write(2);
    let itt = pair.command(WRITE, expected, &cdb, &[1; 512]);
    pair.silence();
    pair.data_out(itt, NO_TAG, 0, 512, true, &[1; 512]);
    assert_eq!(sense(&pair.one()), UNEXPECTED_DATA);
}

#[test]
fn a_command_without_data_needs_no_final_bit() {
    let mut pair = Pair::ready(eager());
    pair.command(0, 0, &TEST_UNIT_READY, &[]);
    assert_eq!(sense(&pair.one()), None);
    pair.command(READ, 512, &ten(0x28, 0, 1), &[]);
    pair.run();
    assert_eq!(pair.one().data[..], pair.disk[..512]);
}

#[test]
fn announced_data_is_taken_before_an_early_failure_is_told() {
    let mut pair = Pair::ready(eager());
    let (expected, _) = write(4);
    let itt = pair.command(WRITE, expected, &ten(0x2A, u32::MAX, 4), &[1; 512]);
    pair.silence();
    pair.data_out(itt, NO_TAG, 0, 512, true, &[1; 512]);
    let answer = pair.one();
    assert_eq!((sense(&answer), residual(&answer.header)), (Some([5, 0x21, 0]), 2048));
    let itt = pair.command(FINAL | WRITE, expected, &ten(0x2A, u32::MAX, 4), &[]);
    let answer = pair.one();
    assert_eq!((answer.header.itt(), sense(&answer)), (itt, Some([5, 0x21, 0])), "nothing is asked for in vain");
}

#[test]
fn a_read_moves_what_is_less_and_says_what_is_left() {
    // Expected data, data that comes, residual.
    for (flags, expected, comes, left) in [
        (READ, 1024, 1024, 0),
        (READ, 512, 512, -512),
        (READ, 10_000, 1024, 8976),
        (READ, 700, 700, -324),
        (READ, 200, 200, -824),
    ] {
        let mut pair = Pair::ready(Params::default());
        pair.command(FINAL | flags, expected, &ten(0x28, 3, 2), &[]);
        pair.run();
        let answer = pair.one();
        assert_eq!(answer.header.opcode(), opcode::DATA_IN);
        assert_eq!((answer.data.len(), residual(&answer.header)), (comes, left));
        assert_eq!(answer.data[..], pair.disk[3 * 512..][..comes]);
    }
    for (flags, expected) in [(READ, 0), (0, 0), (0, 1024)] {
        let mut pair = Pair::ready(Params::default());
        pair.command(FINAL | flags, expected, &ten(0x28, 3, 2), &[]);
        pair.run();
        let answer = pair.one();
        let announced = if flags == 0 { 0 } else { i64::from(expected) };
        assert_eq!((sense(&answer), residual(&answer.header)), (None, announced - 1024));
    }
}

#[test]
fn a_write_moves_what_is_less_and_says_what_is_left() {
    for (flags, expected, moves, left) in [
        (WRITE, 1024, 1024, 0),
        (WRITE, 512, 512, -512),
        (WRITE, 5000, 1024, 3976),
        (WRITE, 700, 512, -324),
        (0, 0, 0, -1024),
    ] {
        let mut pair = Pair::ready(Params::default());
        let mut must = pair.disk.clone();
        must[4096..4096 + moves].fill(9);
        pair.command(FINAL | flags, expected, &write(2).1, &vec![9; expected as usize]);
        pair.run();
        let answer = pair.one();
        assert_eq!((sense(&answer), residual(&answer.header)), (None, left), "{expected}");
        assert!(pair.disk == must, "{expected}");
    }
}

#[test]
fn where_there_is_no_unit_inquiry_says_so_and_report_luns_still_answers() {
    let mut pair = Pair::ready(Params::default());
    let mut ask = |flags, expected, cdb: &[u8]| {
        let itt = pair.new_itt();
        pair.numbered(Pair::header(itt, FINAL | flags, LUN_1, expected, cdb), &[]);
        pair.one()
    };
    assert_eq!(ask(READ, 36, &[0x12, 0, 0, 0, 36, 0]).data[0], 0x7F);
    assert_eq!(
        ask(READ, 16, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]).data[..],
        [[0, 0, 0, 8, 0, 0, 0, 0], [0; 8]].concat()
    );
    let told = ask(READ, 18, &[0x03, 0, 0, 0, 18, 0]).data;
    assert_eq!((told[2], told[12]), (5, 0x25), "REQUEST SENSE tells it as data");
    for (flags, cdb) in
        [(0, &TEST_UNIT_READY[..]), (READ, &ten(0x28, 0, 1)), (WRITE, &ten(0x2A, 0, 1)), (READ, &[0xFF])]
    {
        assert_eq!(sense(&ask(flags, 512, cdb)), Some([5, 0x25, 0]));
    }
}

#[test]
fn additional_headers_of_a_command_are_not_supported_and_others_are_rejected() {
    const BIDIRECTIONAL: &[u8] = &[0, 5, 2, 0, 0, 0, 2, 0];
    const LONG_CDB: &[u8] = &[0, 2, 1, 0, 7, 0, 0, 0];
    for (opcode, ahs, sound) in [
        (opcode::SCSI_COMMAND, BIDIRECTIONAL, true),
        (opcode::SCSI_COMMAND, LONG_CDB, true),
        (opcode::SCSI_COMMAND, &[BIDIRECTIONAL, LONG_CDB].concat(), true),
        (opcode::SCSI_COMMAND, &[0, 5, 3, 0, 0, 0, 2, 0], false), // no such type
        (opcode::SCSI_COMMAND, &[0, 4, 2, 0, 0, 0, 2, 0], false), // a read length of three bytes
        (opcode::SCSI_COMMAND, &[0xFF, 0xFF, 1, 0], false),       // longer than all of them
        (opcode::SCSI_COMMAND, &[0, 0, 0, 0], false),
        (opcode::NOP_OUT, BIDIRECTIONAL, false),
        (opcode::TEXT, LONG_CDB, false),
        (opcode::LOGOUT, LONG_CDB, false),
    ] {
        let mut pair = Pair::ready(Params::default());
        let (cmd_sn, itt) = (pair.cmd_sn, pair.new_itt());
        let mut header = Pair::header(itt, FINAL | READ, LUN_0, 512, &ten(0x28, 0, 1)).with(24, cmd_sn);
        header.0[0] = opcode;
        header.0[4] = u8::try_from(ahs.len() / 4).unwrap();
        pair.cmd_sn = cmd_sn.wrapping_add(1);
        let pdu = Pdu { header, ahs: Bytes::copy_from_slice(ahs), data: Bytes::new(), intact: true };
        pair.session.receive(pdu, &pair.units).unwrap();
        pair.pump();
        if sound {
            assert_eq!(sense(&pair.one()), Some([5, 0x20, 0]), "{ahs:?}");
        } else {
            rejected(&mut pair, reject::INVALID_FIELD);
        }
    }
}

/// As [`Pair::raw`], with a data segment that does not match its digest.
fn spoilt(pair: &mut Pair, header: Header, data: &[u8]) {
    let mut bytes = Vec::new();
    append(&mut bytes, header, data, pair.params.digests);
    *bytes.last_mut().unwrap() ^= 1;
    let mut input = bytes::BytesMut::from(&bytes[..]);
    let pdu = crate::iscsi::frame::next(&mut input, MAX_DATA_SEGMENT, pair.params.digests).unwrap().unwrap();
    pair.session.receive(pdu, &pair.units).unwrap();
    pair.pump();
}

#[test]
fn data_that_does_not_match_its_digest_fails_its_task_and_nothing_else() {
    let digests = Digests { header: true, data: true };
    let mut pair = Pair::ready(Params { digests, ..patient() });
    let before = pair.disk.clone();
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    let data_out = |flags, data_sn, offset| {
        Header::new(opcode::DATA_OUT, flags).with(16, itt).with(20, ttt).with(36, data_sn).with(40, offset)
    };
    spoilt(&mut pair, data_out(0, 0, 0), &[1; 512]);
    rejected(&mut pair, reject::DATA_DIGEST);
    pair.raw(data_out(FINAL, 1, 512), &[1; 512]).unwrap();
    assert_eq!(sense(&pair.one()), Some([0xB, 0x47, 0x05]), "once all of its data has come");
    pair.run();
    assert!(pair.disk == before && !pair.closed);
    // A ping for immediate delivery is rejected and forgotten.
    let ping = Header::new(0x40 | opcode::NOP_OUT, FINAL).with(16, 3).with(20, NO_TAG).with(24, pair.cmd_sn);
    spoilt(&mut pair, ping, &[7; 8]);
    rejected(&mut pair, reject::DATA_DIGEST);
    pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn a_command_that_does_not_match_its_digest_is_not_done_and_ends_the_session() {
    let digests = Digests { header: false, data: true };
    let mut pair = Pair::ready(Params { digests, ..eager() });
    let before = pair.disk.clone();
    let (expected, cdb) = write(1);
    let header = Pair::header(9, FINAL | WRITE, LUN_0, expected, &cdb).with(24, pair.cmd_sn);
    spoilt(&mut pair, header, &[1; 512]);
    rejected(&mut pair, reject::DATA_DIGEST);
    pair.run();
    assert!(pair.closed && pair.disk == before);
}

#[test]
fn an_abort_of_a_command_that_never_came_makes_its_number_count() {
    let mut pair = Pair::ready(Params::default());
    let due = pair.cmd_sn;
    let abort = |pair: &mut Pair, missing: u32, own: u32| {
        let itt = pair.new_itt();
        let header = Header::new(0x40 | opcode::TASK_MANAGEMENT, FINAL | 1).with(16, itt).with(20, 0x50);
        pair.raw(header.with(24, own).with(32, missing), &[]).unwrap();
        itt
    };
    // Not before the function itself, not in the window, already here.
    for (missing, own) in
        [(due, due), (due.wrapping_add(WINDOW), due.wrapping_add(WINDOW + 1)), (due.wrapping_sub(1), due)]
    {
        let itt = abort(&mut pair, missing, own);
        assert_eq!(function_response(&mut pair, itt), function::NO_SUCH_TASK);
    }
    let itt = abort(&mut pair, due.wrapping_add(1), due.wrapping_add(2));
    assert_eq!(function_response(&mut pair, itt), function::COMPLETE);
    pair.cmd_sn = due.wrapping_add(2);
    let itt = abort(&mut pair, due, due.wrapping_add(2));
    assert_eq!(function_response(&mut pair, itt), function::COMPLETE);
    // They are dropped if they still come, and the next is as good as ever.
    for late in [due, due.wrapping_add(1)] {
        pair.raw(Pair::header(0x50, FINAL, LUN_0, 0, &TEST_UNIT_READY).with(24, late), &[]).unwrap();
        pair.silence();
    }
    pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn asynchronous_messages_have_a_number_and_no_tag() {
    let mut pair = Pair::ready(Params::default());
    pair.session.ask_for_logout(7);
    pair.session.announce_drop(2);
    pair.pump();
    let told: Vec<_> =
        pair.take().iter().map(|pdu| (pdu.header.opcode(), pdu.header.itt(), pdu.header.0[36..44].to_vec())).collect();
    let (asks, drops) = (vec![1, 0, 0, 0, 0, 0, 0, 7], vec![3, 0, 0, 0, 0, 2, 0, 0]);
    assert_eq!(told, [(opcode::ASYNC, NO_TAG, asks), (opcode::ASYNC, NO_TAG, drops)]);
    let mut discovery = Pair::fresh(Params::default(), 0, 0, None);
    discovery.session.ask_for_logout(1);
    discovery.pump();
    discovery.silence();
}

#[test]
fn an_aborted_task_that_collects_data_leaves_nothing_behind() {
    let mut pair = Pair::ready(patient());
    let before = pair.disk.clone();
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    let request = pair.function(1, itt, LUN_0);
    pair.data_out(itt, ttt, 0, 0, true, &[1; 1024]); // a straggler
    pair.silence();
    pair.run();
    assert_eq!(function_response(&mut pair, request), function::COMPLETE);
    assert!(pair.disk == before && pair.session.solicited == 0 && pair.session.tasks() == 0);
}

#[test]
fn an_aborted_task_at_work_is_answered_by_the_function_alone() {
    let mut pair = Pair::ready(Params::default());
    let itt = pair.command(FINAL | READ, 512, &ten(0x28, 0, 1), &[]);
    let [Effect::Read(id, _)] = pair.pending[..] else { panic!("{:?}", pair.pending) };
    let request = pair.function(1, itt, LUN_0);
    assert!(
        matches!(&pair.pending[..], [Effect::Abort(abort)] if abort.tasks == [id] && abort.scope == Scope::Session)
    );
    // What the disk still says of it is not heard.
    pair.session.complete(id, Ok(()));
    assert!(pair.session.layout(id).is_none() && !pair.session.data_in(id, &mut [0; 560]));
    pair.pump();
    pair.silence();
    pair.run();
    assert_eq!(function_response(&mut pair, request), function::COMPLETE);
    // The tag is free again.
    pair.numbered(Pair::header(itt, FINAL, LUN_0, 0, &TEST_UNIT_READY), &[]);
    assert_eq!(sense(&pair.one()), None);
}

#[test]
fn functions_that_cannot_be_say_why() {
    let mut pair = Pair::ready(Params::default());
    let itt = pair.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
    for (function, referenced, lun, response) in [
        (1, 0x50, LUN_0, function::NO_SUCH_TASK),
        (1, itt, LUN_1, function::NO_SUCH_UNIT),
        (1, 0x50, LUN_1, function::NO_SUCH_UNIT),
        (2, NO_TAG, LUN_1, function::NO_SUCH_UNIT),
        (5, NO_TAG, LUN_1, function::NO_SUCH_UNIT),
        (3, NO_TAG, LUN_0, function::NOT_SUPPORTED),
        (8, itt, LUN_0, function::REASSIGNMENT_NOT_SUPPORTED),
        (9, NO_TAG, LUN_0, function::NOT_SUPPORTED),
        (0, NO_TAG, LUN_0, function::NOT_SUPPORTED),
    ] {
        let request = pair.function(function, referenced, lun);
        assert_eq!(function_response(&mut pair, request), response, "{function} {referenced:x} {lun:?}");
    }
    pair.run();
    assert_eq!(pair.one().header.itt(), itt, "the task went on");
}

#[test]
fn functions_at_work_are_limited() {
    let mut pair = Pair::ready(Params::default());
    for _ in 0..MAX_FUNCTIONS {
        pair.function(2, NO_TAG, LUN_0);
    }
    let request = pair.function(5, NO_TAG, LUN_0);
    assert_eq!(function_response(&mut pair, request), function::REJECTED);
    pair.run();
    assert_eq!(pair.take().len(), MAX_FUNCTIONS);
}

#[test]
fn a_unit_reset_stops_every_task_and_is_answered_after_they_stopped() {
    let mut pair = Pair::ready(patient());
    let other = Nexus(2);
    pair.unit.lock().unwrap().attach(other, port());
    let _ = pair.unit.lock().unwrap().plan(other, crate::scsi::Command::TestUnitReady);
    let (expected, cdb) = write(2);
    pair.command(FINAL | WRITE, expected, &cdb, &[]);
    pair.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
    pair.take();
    let request = pair.function(5, NO_TAG, LUN_0);
    pair.silence();
    assert!(
        matches!(&pair.pending[..], [Effect::Abort(abort)] if abort.tasks.len() == 2 && abort.scope == Scope::Unit(0))
    );
    pair.run();
    assert_eq!(function_response(&mut pair, request), function::COMPLETE);
    pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    assert_eq!(sense(&pair.one()), Some([6, 0x29, 0x03]), "who resets is told, too");
    let told = pair.unit.lock().unwrap().plan(other, crate::scsi::Command::TestUnitReady);
    assert_eq!(told, crate::scsi::Plan::Check(Sense::DEVICE_RESET));
}

/// A session with a second unit, which a block larger than the first, and of which its initiator knows that it was powered on.
fn with_a_second_unit() -> Pair {
    let mut pair = Pair::ready(patient());
    let mut second = LogicalUnit::numbered(TARGET, 1, (BLOCKS + 1) * BLOCK, false);
    second.attach(NEXUS, port());
    pair.units.push(Arc::new(Mutex::new(second)));
    assert_eq!(sense(&on_second(&mut pair, FINAL, 0, &TEST_UNIT_READY).1), Some([6, 0x29, 0]));
    pair
}

/// Sends a command to LUN 1 that is answered at once: its tag, and the answer.
fn on_second(pair: &mut Pair, flags: u8, expected: u32, cdb: &[u8]) -> (u32, Pdu) {
    let itt = pair.new_itt();
    pair.numbered(Pair::header(itt, flags, LUN_1, expected, cdb), &[]);
    (itt, pair.one())
}

#[test]
fn a_target_of_two_units_lists_both_and_each_is_its_own() {
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    let mut pair = with_a_second_unit();
    let both = [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for lun in [LUN_0, LUN_1, [0, 2, 0, 0, 0, 0, 0, 0]] {
        let itt = pair.new_itt();
        pair.numbered(Pair::header(itt, FINAL | READ, lun, 64, &REPORT_LUNS), &[]);
        assert_eq!(pair.one().data[..], both, "{lun:?}");
    }
    let capacity = |pdu: &Pdu| u32::from_be_bytes(pdu.data[..4].try_into().unwrap());
    let first = pair.command(FINAL | READ, 8, &ten(0x25, 0, 0), &[]);
    let answer = pair.one();
    assert_eq!((answer.header.itt(), u64::from(capacity(&answer))), (first, BLOCKS - 1));
    assert_eq!(u64::from(capacity(&on_second(&mut pair, FINAL | READ, 8, &ten(0x25, 0, 0)).1)), BLOCKS);
    let serial = |pdu: Pdu| pdu.data[4..20].to_vec();
    let page = [0x12, 1, 0x80, 0, 64, 0];
    pair.command(FINAL | READ, 64, &page, &[]);
    assert_ne!(serial(pair.one()), serial(on_second(&mut pair, FINAL | READ, 64, &page).1));

    // What one of them has reserved is free on the other.
    let other = Nexus(2);
    let theirs = InitiatorPort { isid: [9; 6], ..port() };
    for unit in &pair.units {
        unit.lock().unwrap().attach(other, theirs.clone());
        let _ = unit.lock().unwrap().plan(other, crate::scsi::Command::TestUnitReady);
    }
    assert_eq!(sense(&on_second(&mut pair, FINAL, 0, &[0x16, 0, 0, 0, 0, 0]).1), None, "RESERVE (6)");
    let read = crate::scsi::Command::Read(crate::scsi::command::Blocks { lba: 0, count: 1 });
    let plans = pair.units.iter().map(|unit| unit.lock().unwrap().plan(other, read));
    assert!(matches!(plans.collect::<Vec<_>>()[..], [crate::scsi::Plan::Read(_), crate::scsi::Plan::Conflict]));
}

#[test]
fn task_management_of_one_unit_leaves_the_tasks_of_the_other() {
    let all = |pair: &mut Pair| {
        let first = pair.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
        let second = pair.new_itt();
        pair.numbered(Pair::header(second, FINAL, LUN_1, 0, &ten(0x35, 0, 0)), &[]);
        (first, second)
    };
    for (function, lun, scope, stopped) in [
        (2, LUN_1, Scope::Session, [false, true]),
        (2, LUN_0, Scope::Session, [true, false]),
        (4, LUN_1, Scope::TaskSet(1), [false, true]),
        (5, LUN_1, Scope::Unit(1), [false, true]),
        (5, LUN_0, Scope::Unit(0), [true, false]),
        (6, LUN_0, Scope::Units, [true, true]),
        (7, LUN_1, Scope::Sessions, [true, true]),
    ] {
        let mut pair = with_a_second_unit();
        let (first, second) = all(&mut pair);
        let luns: Vec<u8> = pair.pending.iter().filter_map(task_of).map(|task| task.lun).collect();
        assert_eq!(luns, [0, 1], "effects say where");
        pair.function(function, NO_TAG, lun);
        let Some(Effect::Abort(abort)) = pair.pending.iter().find(|effect| matches!(effect, Effect::Abort(_))) else {
            panic!("{:?}", pair.pending)
        };
        assert_eq!(abort.scope, scope);
        let mut gone: Vec<u8> = abort.tasks.iter().map(|task| task.lun).collect();
        gone.sort_unstable();
        let must: Vec<u8> = (0..2).filter(|lun| stopped[usize::from(*lun)]).collect();
        assert_eq!(gone, must, "{function} {lun:?}");
        pair.run();
        let answered: Vec<u32> = pair.take().iter().map(|pdu| pdu.header.itt()).collect();
        assert_eq!([answered.contains(&first), answered.contains(&second)], stopped.map(|stopped| !stopped));
    }

    // ABORT TASK names its task by its unit, too; and another session's reset stops the one unit's only.
    let mut pair = with_a_second_unit();
    let (first, second) = all(&mut pair);
    let request = pair.function(1, second, LUN_0);
    assert_eq!(function_response(&mut pair, request), function::NO_SUCH_TASK);
    let stopped = pair.session.abort_all(Some(1));
    assert_eq!(stopped.iter().map(|task| task.lun).collect::<Vec<_>>(), [1]);
    pair.stop(&stopped);
    pair.run();
    assert_eq!(pair.one().header.itt(), first);
}

#[test]
fn a_cold_reset_closes_after_its_answer() {
    let mut pair = Pair::ready(Params::default());
    let request = pair.function(7, NO_TAG, LUN_0);
    assert!(!pair.closed);
    pair.run();
    assert_eq!(function_response(&mut pair, request), function::COMPLETE);
    assert!(pair.closed);
}

fn logout(pair: &mut Pair, reason: u8) {
    pair.numbered(Header::new(opcode::LOGOUT, FINAL | reason).with(16, 0x77).with(20, u32::from(CID) << 16), &[]);
}

#[test]
fn a_logout_is_answered_and_closes() {
    for reason in [0, 1] {
        let mut pair = Pair::ready(Params::default());
        logout(&mut pair, reason);
        let header = pair.one().header;
        assert_eq!((header.opcode(), header.itt(), header.0[2]), (opcode::LOGOUT_RESPONSE, 0x77, 0));
        assert!(pair.closed);
        pair.immediate(Header::new(opcode::NOP_OUT, FINAL).with(16, 1).with(20, NO_TAG), &[]);
        pair.silence();
    }
    let mut pair = Pair::ready(Params::default());
    logout(&mut pair, 2);
    assert_eq!(pair.one().header.0[2], 2, "recovery is not supported");
    pair.numbered(Header::new(opcode::LOGOUT, FINAL | 1).with(16, 0x77).with(20, 9 << 16), &[]);
    assert_eq!(pair.one().header.0[2], 1, "no such connection");
    logout(&mut pair, 3);
    rejected(&mut pair, reject::INVALID_FIELD);
    assert!(!pair.closed);
}

#[test]
fn a_logout_waits_for_tasks_and_functions() {
    let mut pair = Pair::ready(patient());
    let before = pair.disk.clone();
    let (expected, cdb) = write(2);
    let itt = pair.command(FINAL | WRITE, expected, &cdb, &[]);
    let (ttt, ..) = asked(&mut pair);
    pair.data_out(itt, ttt, 0, 0, true, &[1; 1024]);
    let request = pair.function(5, NO_TAG, LUN_0);
    pair.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
    logout(&mut pair, 0);
    pair.silence();
    assert!(!pair.closed);
    pair.execute(1);
    pair.silence();
    pair.execute(0);
    let opcodes: Vec<_> = pair.take().iter().map(|pdu| (pdu.header.opcode(), pdu.header.itt())).collect();
    assert_eq!(opcodes, [(opcode::TASK_MANAGEMENT_RESPONSE, request), (opcode::LOGOUT_RESPONSE, 0x77)]);
    assert!(pair.closed && pair.disk == before && pair.session.solicited == 0);
}

fn text(ttt: u32, keys: &str) -> (Header, Vec<u8>) {
    (Header::new(opcode::TEXT, FINAL).with(16, 0x99).with(20, ttt), keys.as_bytes().to_vec())
}

#[test]
fn a_long_list_of_targets_comes_in_pieces_that_are_asked_for() {
    let params = Params { initiator_segment: 512, ..Params::default() };
    let mut pair = Pair::fresh(params, 0, 0, None);
    let (header, keys) = text(NO_TAG, "SendTargets=All\0");
    pair.numbered(header, &keys);
    pair.run();
    let (mut list, mut pieces) = (Vec::new(), 0);
    loop {
        let pdu = pair.one();
        assert_eq!((pdu.header.opcode(), pdu.header.itt()), (opcode::TEXT_RESPONSE, 0x99));
        list.extend_from_slice(&pdu.data);
        pieces += 1;
        if pdu.header.last() {
            assert_eq!((pdu.header.flags(), pdu.header.word(20)), (FINAL, NO_TAG));
            break;
        }
        assert_eq!((pdu.header.flags(), pdu.data.len()), (CONTINUE, 512));
        pair.numbered(text(pdu.header.word(20), "").0, &[]);
    }
    let list = String::from_utf8(list).unwrap();
    assert_eq!(list.matches("TargetName=").count(), 40);
    assert_eq!(list.matches("TargetAddress=192.0.2.1:3260,1\0").count(), 40);
    assert_eq!(pieces, list.len().div_ceil(512));
    // The tag is spent.
    pair.numbered(text(2, "").0, &[]);
    rejected(&mut pair, reject::PROTOCOL_ERROR);
}

#[test]
fn a_running_session_lists_its_own_target_and_not_all() {
    let mut pair = Pair::ready(Params::default());
    let mut ask = |keys: &str| {
        let (header, keys) = text(NO_TAG, keys);
        pair.numbered(header, &keys);
        pair.run();
        String::from_utf8(pair.one().data.to_vec()).unwrap()
    };
    assert_eq!(ask("SendTargets=\0"), format!("TargetName={TARGET}\0TargetAddress=192.0.2.1:3260,1\0"));
    assert_eq!(ask("SendTargets=All\0"), "SendTargets=Reject\0");
    assert_eq!(ask("X-com.example=1\0"), "X-com.example=NotUnderstood\0");
}

#[test]
fn texts_that_cannot_be_taken_are_rejected() {
    let mut pair = Pair::fresh(Params::default(), 0, 0, None);
    for (flags, ttt, keys) in [
        (CONTINUE | FINAL, NO_TAG, "SendTargets=\0".to_owned()),
        (FINAL, NO_TAG, (0..=text::MAX_KEYS).map(|n| format!("K{n}=\0")).collect()),
        (FINAL, NO_TAG, "SendTargets\0".to_owned()),
        (FINAL, 77, "SendTargets=All\0".to_owned()),
        (FINAL, NO_TAG, format!("A={}\0B={}\0", "x".repeat(5000), "x".repeat(5000))),
    ] {
        let (mut header, keys) = text(ttt, &keys);
        header.0[1] = flags;
        pair.numbered(header, &keys);
        rejected(&mut pair, reject::PROTOCOL_ERROR);
    }
    let (header, keys) = text(NO_TAG, "SendTargets=All\0");
    pair.numbered(header, &keys);
    pair.numbered(header, &keys);
    rejected(&mut pair, reject::PROTOCOL_ERROR);
    pair.run();
    assert_eq!(pair.one().header.opcode(), opcode::TEXT_RESPONSE);
}

#[test]
fn a_text_may_come_in_pieces_and_an_initiator_that_has_more_to_say_is_let_to() {
    let mut pair = Pair::fresh(Params::default(), 0, 0, None);
    let mut ask = |flags, ttt, keys: &str| {
        let (mut header, keys) = text(ttt, keys);
        header.0[1] = flags;
        pair.numbered(header, &keys);
        pair.run();
        let pdu = pair.one();
        assert_eq!(pdu.header.opcode(), opcode::TEXT_RESPONSE);
        (pdu.header.flags(), pdu.header.word(20), String::from_utf8(pdu.data.to_vec()).unwrap())
    };
    let (flags, ttt, said) = ask(CONTINUE, NO_TAG, "X-com.exa");
    assert_eq!((flags, said.as_str()), (0, ""));
    assert_ne!(ttt, NO_TAG);
    let (flags, ttt, said) = ask(0, ttt, "mple=1\0");
    assert_eq!((flags, said.as_str()), (0, "X-com.example=NotUnderstood\0"), "F answers F alone");
    assert_ne!(ttt, NO_TAG);
    let (flags, ttt, said) = ask(FINAL, ttt, "SendTargets=iqn.2026-11.internal.roost:x\0");
    assert_eq!((flags, ttt), (FINAL, NO_TAG));
    assert!(said.starts_with("TargetName=iqn.2026-11.internal.roost:x\0"), "{said}");
    // No more than so much of it.
    let mut tag = NO_TAG;
    for _ in 0..crate::iscsi::MAX_TEXT / 8192 {
        tag = ask(CONTINUE, tag, &"x".repeat(8192)).1;
    }
    let (mut header, _) = text(tag, "");
    header.0[1] = CONTINUE;
    pair.numbered(header, b"x");
    rejected(&mut pair, reject::PROTOCOL_ERROR);
}

#[test]
fn what_may_be_declared_anew_holds_for_commands_to_come() {
    let mut pair = Pair::ready(Params { initiator_segment: 4096, ..Params::default() });
    let reads = [(); 2].map(|()| pair.command(FINAL | READ, 4096, &ten(0x28, 0, 8), &[]));
    let (header, keys) =
        text(NO_TAG, "MaxRecvDataSegmentLength=512\0InitiatorAlias=x\0MaxBurstLength=512\0SendTargets=All\0Y=\0");
    pair.numbered(header, &keys);
    assert_eq!(pair.one().data[..], *b"MaxBurstLength=Reject\0SendTargets=Reject\0Y=NotUnderstood\0");
    pair.run();
    let lengths: Vec<_> = pair.take().iter().map(|pdu| (pdu.header.itt(), pdu.data.len())).collect();
    assert_eq!(lengths, reads.map(|itt| (itt, 4096)), "as it was when they came");
    pair.command(FINAL | READ, 1024, &ten(0x28, 0, 2), &[]);
    pair.run();
    assert_eq!(pair.take().iter().map(|pdu| pdu.data.len()).collect::<Vec<_>>(), [512, 512]);
}

#[test]
fn a_discovery_session_refuses_scsi() {
    let mut pair = Pair::fresh(Params::default(), 0, 0, None);
    pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    rejected(&mut pair, reject::COMMAND_NOT_SUPPORTED);
    pair.function(5, NO_TAG, LUN_0);
    rejected(&mut pair, reject::COMMAND_NOT_SUPPORTED);
    logout(&mut pair, 0);
    assert_eq!(pair.one().header.opcode(), opcode::LOGOUT_RESPONSE);
}

#[test]
fn a_login_request_in_a_running_session_is_rejected() {
    let mut pair = Pair::ready(Params::default());
    pair.immediate(Header::new(opcode::LOGIN, FINAL), &[]);
    rejected(&mut pair, reject::PROTOCOL_ERROR);
}

#[test]
fn an_echo_is_no_longer_than_the_initiator_takes() {
    let mut pair = Pair::ready(Params { initiator_segment: 514, ..Params::default() });
    for (sent, echoed) in [(0, 0), (7, 7), (512, 512), (514, 512), (3000, 512)] {
        let header = Header::new(opcode::NOP_OUT, FINAL).with(16, 3).with(20, NO_TAG);
        pair.numbered(header, &vec![5; sent]);
        let pdu = pair.one();
        assert_eq!((pdu.header.opcode(), pdu.header.itt(), pdu.header.word(20)), (opcode::NOP_IN, 3, NO_TAG));
        assert_eq!(pdu.data[..], vec![5; echoed]);
    }
}

#[test]
fn a_ping_has_a_transfer_tag_and_takes_no_stat_sn() {
    let mut pair = Pair::ready(Params::default());
    pair.session.ping();
    pair.pump();
    let header = pair.one().header; // its StatSN was checked there: the next one, not taken
    assert_eq!((header.opcode(), header.flags(), header.itt()), (opcode::NOP_IN, FINAL, NO_TAG));
    assert_ne!(header.word(20), NO_TAG);
    assert_eq!((header.lun(), header.data_length()), (LUN_0, 0));
    pair.immediate(Header::new(opcode::NOP_OUT, FINAL).with(16, NO_TAG).with(20, header.word(20)), &[]);
    pair.silence();
}

#[test]
fn transfer_tags_skip_the_one_that_means_none() {
    let mut pair = Pair::ready(Params::default());
    pair.session.next_ttt = NO_TAG - 2;
    let tags = [(); 3].map(|()| pair.session.new_ttt());
    assert_eq!(tags, [NO_TAG - 1, 0, 1]);
}

#[test]
fn no_more_data_is_asked_for_than_fits_and_each_answer_makes_room() {
    let large = (MAX_SOLICITED / 4, ten(0x2A, 0, 2048));
    let mut pair = Pair::ready(patient());
    let tags: Vec<u32> = (0..8).map(|_| pair.command(FINAL | WRITE, large.0, &large.1, &[])).collect();
    let mut r2ts: VecDeque<_> = pair.take().into();
    assert_eq!(r2ts.len(), 4);
    assert_eq!(pair.session.solicited, MAX_SOLICITED);
    // Its bursts are asked for one by one; its data counts until it is written.
    let mut header = r2ts.pop_front().unwrap().header;
    for burst in 0..4 {
        assert_eq!((header.itt(), header.word(36), header.word(44)), (tags[0], burst, 262_144));
        pair.data_out(tags[0], header.word(20), 0, header.word(40), true, &vec![1; 262_144]);
        if burst < 3 {
            header = pair.one().header;
        }
    }
    pair.silence();
    pair.run();
    let answers: Vec<_> = pair.take().iter().map(|pdu| (pdu.header.opcode(), pdu.header.itt())).collect();
    assert_eq!(answers, [(opcode::SCSI_RESPONSE, tags[0]), (opcode::R2T, tags[4])]);
    // An aborted task makes room as well, and one that waits leaves the queue.
    pair.function(1, tags[6], LUN_0);
    assert_eq!(pair.session.waiting_for_r2t, [tags[5], tags[7]]);
    pair.silence();
    pair.function(1, tags[1], LUN_0);
    assert_eq!(pair.one().header.itt(), tags[5]);
    pair.function(2, NO_TAG, LUN_0);
    assert_eq!((pair.session.solicited, pair.session.tasks()), (0, 0));
}
