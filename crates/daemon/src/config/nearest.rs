//! "Did you mean": the word of a list that is nearest to what was written.

/// Longer words are not compared: nobody means a word of these lists by them.
const LONGEST: usize = 48;

/// The nearest word, if it is near: a slip or two away.
pub(super) fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.chars().count() > LONGEST {
        return None;
    }
    let written: Vec<char> = word.to_lowercase().replace('_', "-").chars().collect();
    let near = (written.len() / 3).clamp(1, 3);
    words
        .filter(|known| known.len().abs_diff(written.len()) <= near)
        .map(|known| (distance(&written, &known.chars().collect::<Vec<_>>()), known))
        .min()
        .filter(|(distance, _)| *distance <= near)
        .map(|(_, known)| known)
}

/// How many letters must be put in, left out, replaced, or exchanged with the next one.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let other = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + other);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let words = ["listen", "nbd-listen", "name", "http"];
        let near = |word| nearest(word, words.into_iter());
        assert_eq!(near("listne"), Some("listen"));
        assert_eq!(near("lisen"), Some("listen"));
        assert_eq!(near("nbd_listen"), Some("nbd-listen"));
        assert_eq!(near("NAME"), Some("name"));
        assert_eq!(near("htp"), Some("http"));
        for other in ["", "colour", "x", &"n".repeat(4000)] {
            assert_eq!(near(other), None, "{other}");
        }
    }
}
