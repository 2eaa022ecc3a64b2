//! Text that may be a shape: what parses reads back from its own text, and storage of that shape never goes back in time.
#![no_main]

use gpufeed_profiles::storage::{Shape, ShapedOp, Shaper};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(shape) = Shape::parse(&[text]) else { return };
    let again = Shape::parse(&[shape.to_string()]).expect("a shape's own text is a shape");
    assert_eq!(again.to_string(), shape.to_string());
    let mut shaper = Shaper::new(&shape, 1);
    let mut now = 0;
    for i in 0..50u64 {
        let op = ShapedOp::ALL[(i % 5) as usize];
        let fate = shaper.admit(op, i * 1000, now);
        assert!(fate.first_byte_ns >= now && fate.done_ns >= fate.first_byte_ns, "{fate:?} at {now}");
        now += i * 1_000_000;
    }
});
