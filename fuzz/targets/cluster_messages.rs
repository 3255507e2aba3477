//! JSON that a node (or one that wants to be) sends: refused, or written and read again as the
//! same.
#![no_main]

use holdfast_cluster::{JoinRequest, JoinResponse, SyncMessage};
use libfuzzer_sys::fuzz_target;

macro_rules! both_ways {
    ($kind:ty, $data:expr) => {
        if let Ok(message) = serde_json::from_slice::<$kind>($data) {
            let written = serde_json::to_vec(&message).expect("it was JSON");
            let again = serde_json::from_slice::<$kind>(&written).expect("it is JSON");
            assert_eq!(serde_json::to_vec(&again).expect("it was JSON"), written);
        }
    };
}

fuzz_target!(|data: &[u8]| {
    both_ways!(JoinRequest, data);
    both_ways!(JoinResponse, data);
    both_ways!(SyncMessage, data);
});
