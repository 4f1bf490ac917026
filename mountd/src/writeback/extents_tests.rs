//! The interval logic against a model of one cell per byte.

use bytes::Bytes;
use proptest::prelude::*;

use super::extents::{Content, Extents, take};

const SPACE: u64 = 96;

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64, bool),
    Under(u64, u64, bool),
    Remove(u64, u64),
    Cut(u64),
    Take(bool),
    Land,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..SPACE - 1).prop_flat_map(|s| (Just(s), 1..=(SPACE - s).min(24)));
    let step = prop_oneof![
        4 => (range(), any::<bool>()).prop_map(|((s, l), h)| Step::Insert(s, l, h)),
        1 => (range(), any::<bool>()).prop_map(|((s, l), h)| Step::Under(s, l, h)),
        1 => range().prop_map(|(s, l)| Step::Remove(s, s + l)),
        1 => (0..SPACE).prop_map(Step::Cut),
        2 => any::<bool>().prop_map(Step::Take),
        1 => Just(Step::Land),
    ];
    prop::collection::vec(step, 1..60)
}

fn content(stamp: u8, len: u64, hole: bool) -> Content {
    if hole { Content::Hole(len) } else { Content::Data(Bytes::from(vec![stamp; len as usize])) }
}

/// Per byte: nothing, a hole, or data with a stamp.
type Cells = Vec<Option<Option<u8>>>;

fn cells(extents: &Extents) -> Cells {
    let mut out = vec![None; SPACE as usize];
    let mut last = 0;
    for (s, c) in extents.within(0, SPACE) {
        assert!(s >= last, "ranges overlap or are out of order");
        last = s + c.len();
        for i in 0..c.len() {
            out[(s + i) as usize] = Some(match &c {
                Content::Data(b) => Some(b[i as usize]),
                Content::Hole(_) => None,
            });
        }
    }
    out
}

fn fill(model: &mut Cells, start: u64, len: u64, cell: Option<Option<u8>>, under: bool) {
    for i in start..start + len {
        let place = &mut model[i as usize];
        if !under || place.is_none() {
            *place = cell;
        }
    }
}

proptest! {
    #[test]
    fn behaves_like_one_cell_per_byte(steps in steps()) {
        let (mut dirty, mut flying) = (Extents::default(), Extents::default());
        let mut model: Cells = vec![None; SPACE as usize];
        for (i, step) in steps.into_iter().enumerate() {
            let stamp = i as u8;
            match step {
                Step::Insert(s, l, h) => {
                    dirty.insert(s, content(stamp, l, h), ());
                    fill(&mut model, s, l, Some((!h).then_some(stamp)), false);
                }
                Step::Under(s, l, h) => {
                    dirty.insert_under(s, &content(stamp, l, h), ());
                    fill(&mut model, s, l, Some((!h).then_some(stamp)), true);
                }
                Step::Remove(s, e) => {
                    dirty.remove(s, e);
                    fill(&mut model, s, e - s, None, false);
                }
                Step::Cut(s) => {
                    dirty.cut(s);
                    fill(&mut model, s, SPACE - s, None, false);
                }
                Step::Take(full) => {
                    let busy = cells(&flying);
                    if let Some(batch) = take(&mut dirty, &mut flying, 16, full, 0) {
                        let chunks = (batch.start / 16, (batch.end() - 1) / 16);
                        let hole = matches!(batch.content, Content::Hole(_));
                        prop_assert!(hole || chunks.0 == chunks.1, "data crosses a chunk");
                        for i in batch.start..batch.end() {
                            prop_assert!(busy[i as usize].is_none(), "overlaps what is under way");
                            let is = match &batch.content {
                                Content::Data(b) => Some(b[(i - batch.start) as usize]),
                                Content::Hole(_) => None,
                            };
                            prop_assert_eq!(model[i as usize], Some(is));
                            model[i as usize] = None;
                        }
                    } else if !full {
                        for i in 0..SPACE as usize {
                            prop_assert!(model[i].is_none() || busy[i].is_some());
                        }
                    }
                }
                Step::Land => flying.clear(),
            }
            prop_assert_eq!(&cells(&dirty), &model);
            let data = model.iter().filter(|c| matches!(c, Some(Some(_)))).count() as u64;
            prop_assert_eq!(dirty.data_bytes(), data);
            let end = model.iter().rposition(Option::is_some).map_or(0, |i| i as u64 + 1);
            prop_assert_eq!(dirty.end(), end);
            let gaps: u64 = dirty.gaps(0, SPACE).iter().map(|(s, e)| e - s).sum();
            prop_assert_eq!(gaps, model.iter().filter(|c| c.is_none()).count() as u64);
        }
    }
}

#[test]
fn small_sequential_writes_become_one_buffer() {
    let mut e = Extents::default();
    for i in 0..256u64 {
        e.insert(i * 4096, Content::Data(Bytes::from(vec![i as u8; 4096])), ());
    }
    assert_eq!(e.within(0, u64::MAX).len(), 1);
    let mut flying = Extents::default();
    let batch = take(&mut e, &mut flying, 4 << 20, true, 0).expect("a full window");
    assert_eq!((batch.start, batch.content.len()), (0, 1 << 20));
    assert!(e.is_empty());
}

#[test]
fn a_small_rest_of_a_large_buffer_is_copied_out() {
    let mut e = Extents::default();
    let large = Bytes::from(vec![1u8; 1 << 20]);
    let at = large.as_ptr();
    e.insert(0, Content::Data(large), ());
    e.insert(100, Content::Data(Bytes::from(vec![2u8; (1 << 20) - 100])), ());
    let rest = e.within(0, 100);
    let Content::Data(rest) = &rest[0].1 else { panic!("data expected") };
    assert_ne!(rest.as_ptr(), at);
}
