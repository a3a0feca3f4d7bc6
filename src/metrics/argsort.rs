//! The order in which equal scores come: that of numpy's default sort, which the OD API's figures depend on, and a stable one.
//!
//! The PASCAL evaluator of the OD API sorts scores with numpy's default `argsort` and reverses the result. That sort is an
//! introsort (Musser, Introspective sorting and selection algorithms, 1997), which is not stable, so the places of equal
//! scores, and with them the average precision, follow from its exact steps. [`TieOrder::Numpy`] takes the same steps as
//! numpy 1.26 without SIMD sorting: up to 16 items by insertion, larger parts split around the median of the first, middle
//! and last, the larger part kept for later, heapsort where the splitting goes too deep. Other builds of numpy (AVX-512,
//! numpy 2) place equal scores otherwise; [`TieOrder::Stable`] is what a stable sort gives.

/// How equal scores are placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TieOrder {
    /// As numpy 1.26's default `argsort`, reversed: what the OD API's evaluator did.
    #[default]
    Numpy,
    /// As a stable ascending sort, reversed: of equals the last given comes first.
    Stable,
}

/// The places of `scores`, highest score first; not-a-number, the largest of all to numpy, comes first.
///
/// * `scores`: `[D]`, any values.
/// * returns `[D]`, a permutation of `0..D`.
pub fn argsort_descending(scores: &[f32], ties: TieOrder) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    match ties {
        TieOrder::Numpy => introsort(scores, &mut order),
        TieOrder::Stable => order
            .sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).unwrap_or_else(|| scores[a].is_nan().cmp(&scores[b].is_nan()))),
    }
    order.reverse();
    order
}

/// Parts of up to this many items are sorted by insertion (numpy's threshold).
const SMALL: usize = 16;

/// numpy's order of floats: not-a-number behind everything.
fn less(a: f32, b: f32) -> bool {
    a < b || (b.is_nan() && !a.is_nan())
}

/// Sorts `order` by the scores it points at, ascending.
fn introsort(scores: &[f32], order: &mut [usize]) {
    if order.len() < 2 {
        return;
    }
    // Parts still to be sorted: first place, one past the last, and how many more splits numpy allows. The count is
    // looked at only when a part is taken up again, as numpy does.
    let mut parts = vec![(0, order.len(), 2 * order.len().ilog2() as i32)];
    while let Some((mut start, mut end, mut splits_left)) = parts.pop() {
        if splits_left < 0 {
            heapsort(scores, &mut order[start..end]);
            continue;
        }
        while end - start > SMALL {
            splits_left -= 1;
            let pivot = start + split(scores, &mut order[start..end]);
            // The pivot is in place; the smaller side is sorted now, the larger one later.
            if pivot - start < end - 1 - pivot {
                parts.push((pivot + 1, end, splits_left));
                end = pivot;
            } else {
                parts.push((start, pivot, splits_left));
                start = pivot + 1;
            }
        }
        insertion_sort(scores, &mut order[start..end]);
    }
}

fn insertion_sort(scores: &[f32], part: &mut [usize]) {
    for i in 1..part.len() {
        let mut j = i;
        while j > 0 && less(scores[part[j]], scores[part[j - 1]]) {
            part.swap(j, j - 1);
            j -= 1;
        }
    }
}

/// Splits around the median of the first, middle and last item, and returns the place that the median ends at.
fn split(scores: &[f32], part: &mut [usize]) -> usize {
    let last = part.len() - 1;
    let middle = last / 2;
    for (low, high) in [(0, middle), (middle, last), (0, middle)] {
        if less(scores[part[high]], scores[part[low]]) {
            part.swap(low, high);
        }
    }
    let pivot = scores[part[middle]];
    part.swap(middle, last - 1);
    // The first and last items stop the two scans.
    let (mut left, mut right) = (0, last - 1);
    loop {
        left += 1;
        while less(scores[part[left]], pivot) {
            left += 1;
        }
        right -= 1;
        while less(pivot, scores[part[right]]) {
            right -= 1;
        }
        if left >= right {
            break;
        }
        part.swap(left, right);
    }
    part.swap(left, last - 1);
    left
}

fn heapsort(scores: &[f32], part: &mut [usize]) {
    for root in (0..part.len() / 2).rev() {
        sift_down(scores, part, root);
    }
    for end in (1..part.len()).rev() {
        part.swap(0, end);
        sift_down(scores, &mut part[..end], 0);
    }
}

fn sift_down(scores: &[f32], heap: &mut [usize], mut root: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && less(scores[heap[child]], scores[heap[child + 1]]) {
            child += 1;
        }
        if !less(scores[heap[root]], scores[heap[child]]) {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_every_size_whatever_the_pattern() {
        for n in 0..200usize {
            for pattern in 0..5 {
                let scores: Vec<f32> = (0..n)
                    .map(|i| match pattern {
                        0 => i as f32,
                        1 => -(i as f32),
                        2 => (i * 7919 % 31) as f32,
                        3 => (i % 2) as f32,
                        _ => 1.0,
                    })
                    .collect();
                for ties in [TieOrder::Numpy, TieOrder::Stable] {
                    let order = argsort_descending(&scores, ties);
                    assert!(order.windows(2).all(|w| scores[w[0]] >= scores[w[1]]), "{n} {pattern} {ties:?}");
                    let mut places = order.clone();
                    places.sort_unstable();
                    assert!(places.into_iter().eq(0..n));
                }
            }
        }
    }

    #[test]
    fn equal_scores_come_last_given_first_up_to_sixteen() {
        let order = argsort_descending(&[0.5; 16], TieOrder::Numpy);
        assert!(order.into_iter().eq((0..16).rev()));
    }

    #[test]
    fn seventeen_equal_scores_come_in_numpys_order() {
        // numpy 1.26.4: np.argsort(np.zeros(17, 'f4')), and of 19.
        let mut order = argsort_descending(&[0.0; 17], TieOrder::Numpy);
        order.reverse();
        assert_eq!(order, [0, 14, 13, 12, 11, 10, 9, 15, 8, 6, 5, 4, 3, 2, 1, 7, 16]);
        let mut order = argsort_descending(&[0.0; 19], TieOrder::Numpy);
        order.reverse();
        assert_eq!(order, [0, 16, 15, 14, 13, 12, 11, 10, 17, 9, 7, 6, 5, 4, 3, 2, 1, 8, 18]);
    }

    #[test]
    fn not_a_number_comes_first_and_loses_nothing() {
        let scores: Vec<f32> = (0..40).map(|i| if i % 7 == 3 { f32::NAN } else { i as f32 }).collect();
        for ties in [TieOrder::Numpy, TieOrder::Stable] {
            let order = argsort_descending(&scores, ties);
            let nans = scores.iter().filter(|s| s.is_nan()).count();
            assert!(order[..nans].iter().all(|&i| scores[i].is_nan()), "{ties:?}");
            assert!(order[nans..].windows(2).all(|w| scores[w[0]] > scores[w[1]]), "{ties:?}");
        }
    }

    #[test]
    fn a_sequence_made_to_split_badly_still_ends_sorted() {
        // Many equal runs and an organ pipe drive the depth limit.
        let n = 20_000usize;
        let scores: Vec<f32> = (0..n).map(|i| i.min(n - i) as f32).collect();
        let order = argsort_descending(&scores, TieOrder::Numpy);
        assert!(order.windows(2).all(|w| scores[w[0]] >= scores[w[1]]));
    }
}
