use super::*;

const OWNER: ResourceId = ResourceId([7; 16]);

#[test]
fn a_sum_tells_content_and_place_and_is_never_zero() {
    let mut data = vec![0; 4096];
    assert_eq!(block_sum(9, &data), zero_sum(9));
    assert_ne!(zero_sum(9), zero_sum(10));
    let zero = block_sum(9, &data);
    for bit in [0, 77, 4096 * 8 - 1] {
        data[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(block_sum(9, &data), zero);
        data[bit / 8] ^= 1 << (bit % 8);
    }
    // Pinned: the bytes on disk depend on it.
    assert_eq!(block_sum(1, &[0x5a; 4096]), 0xf2e5_43e4);
    assert_eq!(of_place(3, crc32c::crc32c(&3_u64.to_le_bytes())), 1, "0 says that there is none");
}

#[test]
fn places_in_the_file() {
    assert_eq!((state_offset(0, 0), state_offset(0, 1)), (8192, 12288));
    assert_eq!((page_offset(0), page_offset(1)), (16384, 20480));
    let group = (2 + 32_256) * 4096;
    assert_eq!(state_offset(1, 0), 8192 + group);
    assert_eq!(page_offset(PAGES_PER_GROUP), 16384 + group);
    assert_eq!(file_length(0), 8192);
    assert_eq!(file_length(4096), 20480);
    assert_eq!(page_count(1008 * 4096), 1);
    assert_eq!(page_count(1009 * 4096), 2);
    assert_eq!(group_count(1008 * 4096 * PAGES_PER_GROUP + 4096), 2);
}

#[test]
fn blocks_are_read_back_and_know_their_place_and_owner() {
    let header = ChecksumHeader { resource: OWNER, size: 1 << 30 };
    assert_eq!(ChecksumHeader::decode(&header.encode(1), 1), Ok(header));
    assert!(ChecksumHeader::decode(&header.encode(1), 0).is_err());

    let mut state = ChecksumState { sequence: 5, ..ChecksumState::blank() };
    (state.words[0], state.words[503]) = (3, 1 << 63);
    let block = state.encode(OWNER, 2);
    assert_eq!(ChecksumState::decode(&block, OWNER, 2, 1), Ok(state.clone()));
    assert!(ChecksumState::decode(&block, OWNER, 2, 0).is_err());
    assert!(ChecksumState::decode(&block, OWNER, 1, 1).is_err());

    let mut sums = [0; 1008];
    (sums[0], sums[1007]) = (1, u32::MAX);
    let mut block = encode_page(&sums, OWNER, 40_000);
    assert_eq!(decode_page(&block, OWNER, 40_000).as_deref(), Ok(&sums));
    assert!(decode_page(&block, OWNER, 40_001).is_err());
    assert!(decode_page(&block, ResourceId([8; 16]), 40_000).is_err());
    block[4095] ^= 1;
    assert!(matches!(decode_page(&block, OWNER, 40_000), Err(BlockError::Checksum { .. })));
}

#[test]
fn of_two_states_the_newer_counts_and_a_broken_one_makes_both_worthless() {
    let state = |sequence| Ok(ChecksumState { sequence, ..ChecksumState::blank() });
    let blank = || Err(BlockError::Blank);
    let broken = || Err(BlockError::Checksum { stored: 1, computed: 2 });
    let found = |a, b| ChecksumState::newest(a, b).map(|state| state.sequence);
    assert_eq!(found(state(4), state(5)), Ok(5));
    assert_eq!(found(state(6), state(5)), Ok(6));
    assert_eq!(found(blank(), state(1)), Ok(1));
    assert_eq!(found(blank(), blank()), Ok(0));
    assert!(found(broken(), state(5)).is_err());
    assert!(found(state(4), broken()).is_err());
    assert!(found(broken(), blank()).is_err());
}
