//! What the benchmarks make of their raw figures.

/// Of sorted values, the one below which so many of a hundred lie (nearest rank).
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}
