//! Ranks that must decide alike, as threads with a cache each. Their sums are added up where the
//! backend under test has them: on CUDA on the device, in the order of the pass's stream.
mod support;

use support::ranks::Collective;
use support::*;

const STEPS: u32 = 12;

/// What one rank of a run was answered. Each adds its own part of the change: on rank 0 the data
/// hardly changes, on rank 1 it changes more at every step.
fn rank(number: usize, options: &str, collective: Option<&Collective>, vetoes: bool) -> Trace {
    let setup = Setup::new(3, options);
    let cache = setup.with(|e| collective.into_iter().for_each(|all| all.serve(e))).create();
    let toy = Toy::new(&[0.5, 0.25, 0.125]);
    ok(cache.begin_run(STEPS));
    for step in 0..STEPS {
        let growth = [0.001, 0.03][number] * (step * step) as f32;
        let x = [Tensor::new(Dtype::F32, &[33])];
        x[0].set(&noise(7, 33).iter().map(|x| x * (1.0 + growth)).collect::<Vec<_>>());
        ok(cache.begin_pass(&pass_of(step, &[0])));
        // One rank has to compute what all of them could skip.
        let vetoed = vetoes && step == 3 && number == 1;
        for block in 0..3 {
            if vetoed && block == 0 {
                assert_eq!(cache.decide(DC_COMPUTE), DC_COMPUTE);
            }
            if cache.before(block, &x) == DC_COMPUTE {
                toy.block(block as usize, &x);
                cache.after(block, &x);
            }
        }
        ok(cache.end_pass());
    }
    cache.trace()
}

fn ranks(options: &str, collective: &Collective, vetoes: bool) -> [Trace; 2] {
    std::thread::scope(|scope| {
        let ranks = [0, 1]
            .map(|number| scope.spawn(move || rank(number, options, Some(collective), vetoes).0));
        ranks.map(|rank| Trace(rank.join().expect("a rank")))
    })
}

fn options(lagged: u32) -> String {
    format!("fbcache,threshold=0.3,lagged={lagged},{NO_RAILS}")
}

#[test]
fn ranks_judge_by_the_change_of_all_of_them() {
    for lagged in [0, 1] {
        let options = options(lagged);
        let alone = [0, 1].map(|number| rank(number, &options, None, false).actions());
        assert_ne!(alone[0], alone[1], "they would not agree by themselves");
        let collective = Collective::new(2);
        let together = ranks(&options, &collective, false);
        assert_eq!(together[0].bits(), together[1].bits(), "decisions and the change behind them");
        let actions = together[0].actions();
        assert!(actions.contains('s') && actions[1..].contains('C'), "{actions}");
        // One each in every pass, as the rules leave all of them open.
        assert_eq!(collective.calls(), 2 * STEPS as usize, "{actions}");
    }
}

#[test]
fn a_veto_of_one_rank_makes_all_compute() {
    for lagged in [0, 1] {
        let options = options(lagged);
        let [free, other] = ranks(&options, &Collective::new(2), false);
        assert_eq!(free.actions(), other.actions());
        assert_eq!(&free.actions()[3..4], "s", "{}", free.actions());
        let vetoed = ranks(&options, &Collective::new(2), true);
        assert_eq!(vetoed[0].actions(), vetoed[1].actions());
        assert_eq!(&vetoed[0].actions()[3..4], "C");
        assert_eq!((&vetoed[0].reasons()[3..4], &vetoed[1].reasons()[3..4]), ("V", "E"));
    }
}
