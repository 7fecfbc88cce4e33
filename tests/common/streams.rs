//! Text that comes token by token, against decoding at once.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rwkv_edge::{TextStream, Tokenizer};

pub fn streamed(stream: &mut TextStream<'_>, ids: &[u32]) -> String {
    let mut text = String::new();
    for &id in ids {
        text.push_str(stream.push(id).unwrap());
    }
    text.push_str(stream.finish().unwrap());
    text
}

/// Ids drawn from `pool`; one in eight from all ids, some beyond the last.
fn random_ids(rng: &mut ChaCha8Rng, pool: &[u32], n_tokens: usize) -> Vec<u32> {
    let mut below = |n: usize| rng.next_u64() as usize % n;
    let n_ids = below(24);
    (0..n_ids)
        .map(|_| match below(8) {
            0 => below(n_tokens + 3) as u32,
            _ => pool[below(pool.len())],
        })
        .collect()
}

pub fn check_streams(tokenizer: &Tokenizer) {
    let n_tokens = tokenizer.n_tokens();
    // Tokens with a part of a character, and a few special and plain ones: the hard cases.
    let mut pool: Vec<u32> = (0..n_tokens as u32)
        .filter(|&id| tokenizer.decode(&[id]).unwrap().contains('\u{fffd}'))
        .collect();
    assert!(pool.len() >= 128, "{} partial tokens", pool.len());
    pool.extend([0, 1, 5, 50, 100]);
    // Whole multi-byte characters, one token a byte or so.
    let characters = tokenizer.encode("龍鬱👩🏿‍🚀क्षก𝄞é한").unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut stream = TextStream::new(tokenizer);
    let mut with_replacement = 0;
    for round in 0..20_000 {
        let pool = if round % 3 == 0 { &characters } else { &pool };
        let ids = random_ids(&mut rng, pool, n_tokens);
        let expected = tokenizer.decode(&ids).unwrap();
        with_replacement += usize::from(expected.contains('\u{fffd}'));
        assert_eq!(streamed(&mut stream, &ids), expected, "{ids:?}");
    }
    assert!(with_replacement > 5_000, "{with_replacement}");
}
