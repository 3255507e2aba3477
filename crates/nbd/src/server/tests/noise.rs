use super::*;
use crate::{MemoryExport, SingleExport};
use proptest::collection::vec;
use proptest::prelude::*;

/// Lets a client say `bytes` after the handshake and leave; everything must come to an end.
fn survive(style: ReplyStyle, bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exports = SingleExport(MemoryExport::new("x", 1 << 20));
    let options = ServerOptions::default();
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let server = serve(theirs, &CLIENT, &exports, &options);
        let client = async {
            let peer = Peer::enter(ours, style).await;
            let (mut reader, mut writer) = tokio::io::split(peer.stream);
            let say = async {
                // The server may have hung up in the middle.
                let _ = writer.write_all(bytes).await;
                let _ = writer.shutdown().await;
            };
            let mut nowhere = tokio::io::sink();
            let _ = tokio::join!(say, tokio::io::copy(&mut reader, &mut nowhere));
        };
        let both = async { tokio::join!(server, client).0 };
        let _ = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it hangs");
    });
}

fn style() -> impl Strategy<Value = ReplyStyle> {
    prop_oneof![Just(ReplyStyle::Simple), Just(ReplyStyle::Structured), Just(ReplyStyle::Extended)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_requests_come_to_an_end(
        style in style(),
        requests in vec((0..10u16, 0..64u16, 0..1_100_000u64, 0..70_000u64, any::<bool>()), 0..40),
        noise in vec(any::<u8>(), 0..100)
    ) {
        let mut bytes = Vec::new();
        for (command, flags, offset, len, odd) in requests {
            let offset = if odd { u64::MAX - offset } else { offset };
            bytes.extend(flagged(style, command, flags, 1, offset, len));
            if command == 1 {
                bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0x5a);
            }
        }
        bytes.extend(noise);
        survive(style, &bytes);
    }

    #[test]
    fn noise_comes_to_an_end(style in style(), noise in vec(any::<u8>(), 0..5000)) {
        survive(style, &noise);
    }
}
