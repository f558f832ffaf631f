//! Teams of threads: every item once, panics passed on, nested and concurrent use, sleeping and waking.

use sharp_quant::{Error, Isa, Team};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

#[test]
fn every_item_is_run_once() {
    for threads in [1, 2, 3, 8] {
        let team = Team::new(threads).unwrap();
        assert_eq!(team.threads(), threads);
        for items in [0, 1, 2, 7, 100, 1000] {
            for _ in 0..20 {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                team.run(items, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {items} items"
                );
            }
        }
    }
}

#[test]
fn chunks_cover_a_slice() {
    let team = Team::new(3).unwrap();
    for (len, chunk) in [(0, 4), (1, 4), (10, 3), (12, 3), (5, 0), (5, 100)] {
        let mut data = vec![0usize; len];
        team.chunks_mut(&mut data, chunk, &|i, part| {
            assert!(part.len() <= chunk.max(1));
            for (j, v) in part.iter_mut().enumerate() {
                *v += i * chunk.max(1) + j + 1;
            }
        });
        assert!(data.iter().enumerate().all(|(i, &v)| v == i + 1));
    }
}

#[test]
fn rows_go_with_their_items() {
    let team = Team::new(3).unwrap();
    for n in [0, 1, 7, 100] {
        let mut items: Vec<usize> = (0..n).collect();
        let (mut narrow, mut wide) = (vec![0; 2 * n], vec![0; 3 * n]);
        team.rows_mut(&mut items, [(&mut narrow, 2), (&mut wide, 3)], |i, item, [narrow, wide]| {
            assert_eq!((*item, narrow.len(), wide.len()), (i, 2, 3));
            *item += 1;
            narrow.fill(2 * i);
            wide.fill(3 * i);
        });
        assert!(items.iter().enumerate().all(|(i, &v)| v == i + 1));
        assert!(narrow.iter().enumerate().all(|(i, &v)| v == i / 2 * 2));
        assert!(wide.iter().enumerate().all(|(i, &v)| v == i / 3 * 3));
    }
    let mismatch = AssertUnwindSafe(|| team.rows_mut(&mut [0; 3], [(&mut [0; 5][..], 2)], |_, _, _| {}));
    assert!(catch_unwind(mismatch).is_err());
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_team_usable() {
    let team = Team::new(3).unwrap();
    for bad in [0, 50, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            team.run(100, &|i| {
                std::thread::sleep(Duration::from_micros(20));
                assert!(i != bad, "item {i}");
            });
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        team.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}

#[test]
fn regions_inside_regions_and_from_several_threads_are_correct() {
    let team = Team::new(2).unwrap();
    let sum = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..50 {
                    team.run(4, &|_| {
                        team.run(5, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        })
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * 50 * 4 * 10);
}

#[test]
fn sleeping_workers_wake_for_the_next_region() {
    let team = Team::new(3).unwrap();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(8));
        let others = AtomicUsize::new(0);
        let me = std::thread::current().id();
        // Items long enough that a worker, once woken, finds some left.
        team.run(12, &|_| {
            std::thread::sleep(Duration::from_millis(5));
            if std::thread::current().id() != me {
                others.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(others.into_inner() > 0, "no worker woke in 20 ms");
    }
}

#[test]
fn an_unknown_or_absent_instruction_set_is_an_error() {
    let message = Isa::named("sse9").unwrap_err().to_string();
    assert!(message.contains("sse9") && message.contains("scalar"), "{message}");
    let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    let error = Isa::named(foreign).unwrap_err();
    assert!(matches!(error, Error::IsaUnavailable { .. }));
    for isa in Isa::available() {
        assert_eq!(Isa::named(isa.name()).unwrap(), isa);
    }
    assert_eq!(Isa::available()[0], Isa::best());
}
