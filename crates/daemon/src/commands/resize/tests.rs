use super::*;

const MIB: u64 = 1 << 20;

fn rooms(sizes: &[u64]) -> Vec<(String, u64)> {
    let names = ["alpha", "beta", "gamma"];
    names.iter().zip(sizes).map(|(name, size)| ((*name).to_owned(), *size)).collect()
}

#[test]
fn the_smallest_disk_says_how_large_it_becomes() {
    let rooms = rooms(&[30 * MIB, 20 * MIB, 40 * MIB]);
    assert_eq!(choose("r0", None, 10 * MIB, &rooms), Ok(20 * MIB));
    assert_eq!(choose("r0", Some(12 * MIB), 10 * MIB, &rooms), Ok(12 * MIB));
    assert_eq!(choose("r0", Some(10 * MIB), 10 * MIB, &rooms), Ok(10 * MIB), "as it is");
    assert_eq!(choose("r0", Some(20 * MIB), 10 * MIB, &rooms), Ok(20 * MIB));
}

#[test]
fn what_does_not_fit_is_refused_with_the_nodes_in_the_way() {
    let rooms = rooms(&[30 * MIB, 20 * MIB]);
    let code = |wanted, present| choose("r0", wanted, present, &rooms).unwrap_err();
    let error = code(Some(25 * MIB), 10 * MIB);
    assert_eq!(error.code, ErrorCode::DiskTooSmall);
    assert!(error.message.contains("20 MiB on node beta"), "{}", error.message);
    assert!(!error.message.contains("alpha"), "{}", error.message);
    let error = code(None, 20 * MIB);
    assert_eq!(error.code, ErrorCode::DiskTooSmall);
    assert!(error.message.contains("node beta has no room for more"), "{}", error.message);
    assert_eq!(code(Some(MIB), 10 * MIB).code, ErrorCode::InvalidSize);
    assert_eq!(code(None, 25 * MIB).code, ErrorCode::InvalidSize, "nobody shrinks by default");
    assert_eq!(choose("r0", None, MIB, &[]).unwrap_err().code, ErrorCode::NoDisk);
}
