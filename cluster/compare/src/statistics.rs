//! Medians and ratios.

/// The middle value, or the mean of the two in the middle; nothing of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// How one column of figures relates to another, round by round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median by median.
    pub of_medians: f64,
    /// The least and the greatest of the rounds' own ratios: how far to trust the first.
    pub least: f64,
    pub greatest: f64,
}

/// The ratio of pairs measured in the same rounds; nothing of nothing.
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let (above, below) = (median(pairs.iter().map(|pair| pair.0))?, median(pairs.iter().map(|pair| pair.1))?);
    let own = pairs.iter().map(|(above, below)| above / below);
    let (least, greatest) = (own.clone().fold(f64::INFINITY, f64::min), own.fold(f64::NEG_INFINITY, f64::max));
    Some(Ratio { of_medians: above / below, least, greatest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn a_ratio_tells_its_spread() {
        let pairs = [(10.0, 5.0), (30.0, 10.0), (20.0, 20.0)];
        assert_eq!(ratio(&pairs), Some(Ratio { of_medians: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(ratio(&[]), None);
    }
}
