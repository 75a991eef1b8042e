//! Which of the machine's NVIDIA cards a process may use.

use crate::config::Env;

/// A card, as its driver can be asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpu {
    /// The number that the driver counts it by.
    Index(u32),
    /// A part of a card (`MIG-…`), by its own id.
    Part(String),
}

/// What `CUDA_VISIBLE_DEVICES` says: CUDA's own library shows a process these cards only, and numbers them in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VisibleGpus(Option<String>);

impl VisibleGpus {
    /// Reads the variable. Unset, all cards are visible; empty, none.
    pub fn from_env(env: &Env) -> Self {
        Self(env.given("CUDA_VISIBLE_DEVICES").map(str::to_owned))
    }

    /// The visible cards, in the order in which CUDA numbers them. `ids` are the ids of all cards (`GPU-…`), in the driver's
    /// order. As for CUDA, a name is an index, an id or the beginning of just one; and the first that is none of these, or was
    /// named before, ends the list.
    ///
    /// Indices are the driver's if `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`, or all cards are alike.
    ///
    /// ```
    /// use gen_worker_core::{Gpu, VisibleGpus, config::Env};
    ///
    /// let visible = VisibleGpus::from_env(&Env::from_iter([("CUDA_VISIBLE_DEVICES", "1,GPU-a0")]));
    /// assert_eq!(visible.of(&["GPU-a0b1", "GPU-c2d3"]), [Gpu::Index(1), Gpu::Index(0)]);
    /// ```
    pub fn of(&self, ids: &[impl AsRef<str>]) -> Vec<Gpu> {
        let Some(names) = &self.0 else { return (0..ids.len() as u32).map(Gpu::Index).collect() };
        let mut visible = Vec::new();
        for name in names.split(',') {
            match find(name.trim(), ids).filter(|gpu| !visible.contains(gpu)) {
                Some(gpu) => visible.push(gpu),
                None => break,
            }
        }
        visible
    }
}

fn find(name: &str, ids: &[impl AsRef<str>]) -> Option<Gpu> {
    if name.starts_with("MIG-") {
        return Some(Gpu::Part(name.to_owned()));
    }
    if !name.starts_with("GPU-") {
        return name.parse().ok().filter(|index| (*index as usize) < ids.len()).map(Gpu::Index);
    }
    let mut named = (0..).zip(ids).filter(|(_, id)| id.as_ref().starts_with(name)).map(|(index, _)| index);
    named.next().filter(|_| named.next().is_none()).map(Gpu::Index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = ["GPU-a0b1", "GPU-a0c2", "GPU-ffff"];

    fn visible(setting: Option<&str>) -> Vec<Gpu> {
        let env = Env::from_iter(setting.map(|value| ("CUDA_VISIBLE_DEVICES", value)));
        VisibleGpus::from_env(&env).of(&IDS)
    }

    fn indices(indices: &[u32]) -> Vec<Gpu> {
        indices.iter().map(|index| Gpu::Index(*index)).collect()
    }

    #[test]
    fn unset_shows_all_and_empty_none() {
        assert_eq!(visible(None), indices(&[0, 1, 2]));
        assert_eq!(visible(Some("")), []);
        assert_eq!(visible(Some(" ")), []);
        assert_eq!(VisibleGpus::default().of(&[""; 0]), []);
    }

    #[test]
    fn indices_and_ids_are_taken_in_order() {
        assert_eq!(visible(Some("2, 0")), indices(&[2, 0]));
        assert_eq!(visible(Some("GPU-ffff,GPU-a0c")), indices(&[2, 1]));
        assert_eq!(visible(Some("MIG-5c8,0")), [Gpu::Part("MIG-5c8".into()), Gpu::Index(0)]);
    }

    #[test]
    fn what_names_no_card_ends_the_list() {
        for (setting, shown) in [
            ("-1", &[][..]),
            ("1,-1,2", &[1]),
            ("0,3,1", &[0]),
            ("1,1,2", &[1]),
            ("1,GPU-a0c2", &[1]),
            ("GPU-a0", &[]),
            ("GPU-9,0", &[]),
            ("all", &[]),
        ] {
            assert_eq!(visible(Some(setting)), indices(shown), "{setting}");
        }
    }
}
