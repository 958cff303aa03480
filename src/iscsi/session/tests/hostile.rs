//! PDUs that no initiator sends.

use bytes::BytesMut;
use proptest::prelude::*;

use super::super::*;
use super::pair::*;
use crate::iscsi::frame;

/// A PDU out of likely and unlikely fields.
fn pdu() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let word = || prop_oneof![3 => 0_u32..6, 1 => Just(NO_TAG), 1 => any::<u32>()];
    let opcode = prop_oneof![
        4 => Just(opcode::SCSI_COMMAND),
        6 => Just(opcode::DATA_OUT),
        2 => Just(opcode::TASK_MANAGEMENT),
        1 => Just(opcode::TEXT),
        1 => Just(opcode::NOP_OUT),
        1 => any::<u8>(),
    ];
    let length = prop_oneof![Just(512_u32), Just(0x0010_0000), 0_u32..5000, any::<u32>()];
    let first = prop_oneof![3 => Just(0x2A_u8), 1 => Just(0x28), 1 => Just(0x42), 1 => Just(0x41), 1 => any::<u8>()];
    let data = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        2 => Just(vec![0; 512]),
        1 => Just(b"SendTargets=All\0".to_vec()),
        1 => (0_usize..4000).prop_map(|length| vec![7; length]),
    ];
    (opcode, any::<bool>(), any::<u8>(), any::<[u8; 12]>(), [word(), word(), word(), word()], length, first, data)
        .prop_map(|(opcode, immediate, flags, noise, words, length, first, data)| {
            let mut header = Header::new(0, 0);
            header.0.copy_from_slice(&noise.repeat(4));
            header.0[0] = opcode & 0xBF | u8::from(immediate) << 6;
            header.0[1] = flags;
            header.0[4] = 0;
            header.set_lun(if noise[8] < 230 { LUN_0 } else { LUN_1 });
            let [itt, ttt, data_sn, offset] = words;
            header.set_word(16, itt);
            header.set_word(36, data_sn);
            header.set_word(40, offset);
            match opcode {
                opcode::SCSI_COMMAND => {
                    header.set_word(20, length);
                    header.0[32..44].copy_from_slice(&[first, 0, 0, 0, 0, noise[9], 0, noise[10] & 0x0F, 8, 0, 0, 0]);
                }
                _ => header.set_word(20, ttt),
            }
            (header, data)
        })
}

fn check(session: &Session, bytes_sent: usize) -> Result<(), TestCaseError> {
    let reserved: u32 = session.tasks.values().map(task::Task::reserved).sum();
    prop_assert_eq!(session.solicited, reserved);
    prop_assert!(session.solicited <= MAX_SOLICITED);
    prop_assert!(session.tasks.len() <= WINDOW as usize + MAX_IMMEDIATE);
    prop_assert_eq!(session.by_id.len(), session.tasks.len());
    prop_assert!(session.waiting_for_r2t.iter().all(|itt| session.tasks.contains_key(itt)));
    prop_assert!(session.functions <= MAX_FUNCTIONS + 1);
    prop_assert!(session.held() <= bytes_sent, "what is held was sent");
    Ok(())
}

impl Session {
    fn held(&self) -> usize {
        self.tasks.values().map(task::Task::held).sum()
    }
}

proptest! {
    #[test]
    fn no_pdus_upset_a_session(
        pdus in prop::collection::vec((pdu(), any::<bool>(), 0_u8..8), 1..100),
        initial_r2t: bool,
        immediate_data: bool,
        first_burst in 512_u32..3000,
        discovery in prop::bool::weighted(0.1),
    ) {
        let params = Params { initial_r2t, immediate_data, first_burst, max_burst: 4096, ..Params::default() };
        let mut pair = Pair::fresh(params, u32::MAX - 5, 0, (!discovery).then_some(TARGET));
        let mut sent = 0;
        for ((header, data), in_order, execute) in pdus {
            // Most of them come where they are due; PDUs that the target's own numbers are checked against are known then.
            let cmd_sn = pair.session.exp_cmd_sn;
            let header = if in_order { header.with(24, cmd_sn) } else { header };
            let mut bytes = Vec::new();
            append(&mut bytes, header, &data, Digests::NONE);
            sent += data.len();
            let next = frame::next(&mut BytesMut::from(&bytes[..]), MAX_DATA_SEGMENT, Digests::NONE);
            let mut pdu = next.unwrap().expect("a whole PDU");
            // Some have additional headers of any kind, some were spoilt on the way.
            if header.0[47] < 16 {
                pdu.ahs = Bytes::copy_from_slice(&header.0[8..20]);
            }
            pdu.intact = header.0[46] > 8 || data.is_empty();
            let units = if discovery { &[] } else { &pair.units[..] };
            let verdict = pair.session.receive(pdu, units);
            pair.cmd_sn = pair.session.exp_cmd_sn;
            pair.pump();
            check(&pair.session, sent)?;
            if verdict.is_err() || pair.closed {
                break;
            }
            if execute == 0 && !pair.pending.is_empty() {
                pair.execute(0);
                check(&pair.session, sent)?;
            }
        }
        let stopped = pair.session.abort_all(None);
        pair.stop(&stopped);
        pair.run();
        check(&pair.session, 0)?;
        prop_assert_eq!((pair.session.solicited, pair.session.tasks()), (0, 0));
    }
}
