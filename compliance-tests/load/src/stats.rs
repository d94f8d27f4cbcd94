//! Medians and percentiles over samples in milliseconds. Every sample is kept, so that the raw
//! JSON can be looked at again; a run has tens of thousands at most.

use std::time::Duration;

/// Samples in milliseconds, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(ms(sample));
    }

    pub(crate) fn all(&self) -> &[f64] {
        &self.0
    }

    /// The smallest sample that at least `percent` % of all samples do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self(samples.into_iter().map(ms).collect())
    }
}

/// A duration in milliseconds, to the microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Samples;

    #[test]
    fn a_percentile_is_the_smallest_sample_that_covers_it() {
        let samples: Samples = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(samples.percentile(50), Some(100.0));
        assert_eq!(samples.percentile(99), Some(198.0));
        assert_eq!(samples.percentile(100), Some(200.0));
    }

    #[test]
    fn one_sample_is_every_percentile_and_none_is_no_percentile() {
        let one: Samples = [Duration::from_micros(1500)].into_iter().collect();
        assert_eq!(one.percentile(1), Some(1.5));
        assert_eq!(one.percentile(99), Some(1.5));
        assert_eq!(Samples::default().percentile(50), None);
    }
}
