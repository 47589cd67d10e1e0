//! What coming passes will be answered, as far as it is certain: the rules are asked ahead of time,
//! which changes nothing, because a rule is pure to ask and clones of it take the record.
use super::{Group, Place};
use crate::ops::Ops;
use crate::rule::{self, Action, Pass, Reason, Rule, Verdict};
use crate::scope::Scope;

/// Steps that a coming pass may lie ahead to be played forward to.
pub const FORESIGHT: u32 = 1 << 14;

/// A pass that will come before the one that is asked about.
pub struct Between {
    pub pass: Pass,
    /// The unconditional branch, if guidance leaves it out of this pass.
    pub without: Option<usize>,
    /// ... and if it is stacked in it, though not in the one that is asked about.
    pub with: Option<usize>,
}

/// What is asked: a pass that will come, or the open one, at one site.
struct Asked<'a> {
    place: Place,
    pass: &'a Pass,
    members: &'a [usize],
    /// The first step that can still be evaluated.
    next: u32,
    /// What the open pass does comes before.
    waits: bool,
}

/// A branch whose passes are played forward.
#[derive(Default)]
pub(super) struct Player {
    member: usize,
    rules: Vec<Box<dyn Rule>>,
    /// Its rules decide, and not those of another.
    decides: bool,
    /// Position of its newest value at the site that is asked about.
    newest: Option<f64>,
    /// ... and at any.
    newest_of_all: Option<f64>,
    keeps: bool,
}

impl Player {
    fn record(&mut self, pass: &Pass, action: Action) {
        self.rules.iter_mut().for_each(|rule| rule.record(pass, action, None));
        if action == Action::Compute {
            self.compute(pass);
        }
    }

    /// The site's value is computed.
    fn compute(&mut self, pass: &Pass) {
        if self.keeps {
            self.newest = Some(f64::from(pass.position()));
            self.newest_of_all = self.newest;
        }
    }
}

/// A value as new as this cannot stand in.
fn is_stale(newest: Option<f64>, pass: &Pass, max_age: Option<u32>) -> bool {
    let age = |newest| f64::from(pass.position()) - newest;
    let old = |newest| max_age.is_some_and(|max| age(newest) > f64::from(max));
    newest.is_none_or(old)
}

/// Facts of the schedule hold whatever happens before; counts do not.
fn is_fact(verdict: Verdict) -> bool {
    use Reason::{Guidance, Interval, Last, Rule, WarmUp, Window};
    matches!(verdict, Verdict::Compute(WarmUp | Last | Rule | Interval | Window | Guidance))
}

/// The verdict of several branches together.
fn judge<'a>(players: impl Iterator<Item = &'a Player>, pass: &Pass) -> Verdict {
    let deciding = players.filter(|player| player.decides);
    rule::decide(deciding.flat_map(|player| &player.rules), pass, None)
}

impl<O: Ops> Group<O> {
    /// The answer of the open pass at a site, as far as it is certain.
    pub fn peek_open(&mut self, ops: &mut O, place: Place) -> Option<Action> {
        // A pass that was refused computes.
        let Some(turn) = &self.turn else {
            return Some(Action::Compute);
        };
        if self.is_reached_at(place) {
            let filled = self.is_filled_at(place);
            return Some(if filled { Action::Skip } else { Action::Compute });
        }
        if let Some(decision) = turn.decision {
            let able = self.is_able(place, &turn.members, &turn.pass);
            return Some(if able { decision.action } else { Action::Compute });
        }
        if turn.veto.is_some() || turn.compute {
            return Some(Action::Compute);
        }
        let turn = self.turn.take()?;
        let (pass, members) = (&turn.pass, &turn.members[..]);
        let asked = Asked { place, pass, members, next: pass.step, waits: false };
        let answer = self.foresee(ops, &asked, |_| None);
        self.turn = Some(turn);
        answer
    }

    /// The answer of a coming pass, as far as it is certain. `next` is the first step that can
    /// still be evaluated; `at` gives the passes between it and `pass`, unless they are uncertain.
    pub fn peek(
        &mut self,
        ops: &mut O,
        place: Place,
        pass: &Pass,
        members: &[usize],
        next: u32,
        at: impl FnMut(u32) -> Option<Between>,
    ) -> Option<Action> {
        let waits = self.turn.is_some();
        self.foresee(ops, &Asked { place, pass, members, next, waits }, at)
    }

    /// What is kept at a site could stand in.
    fn is_able(&self, place: Place, members: &[usize], pass: &Pass) -> bool {
        let usable = |site| self.unusable_at(site, members, pass).is_none();
        self.site(place).is_some_and(usable)
    }

    fn foresee(
        &mut self,
        ops: &mut O,
        asked: &Asked,
        at: impl FnMut(u32) -> Option<Between>,
    ) -> Option<Action> {
        let Asked { place, pass, members, next, waits } = *asked;
        if !self.takes(place) {
            return Some(Action::Compute);
        }
        match self.led(pass.step) {
            Some(Action::Compute) => return Some(Action::Compute),
            Some(Action::Skip) => {
                let able = self.is_able(place, members, pass);
                return Some(if able { Action::Skip } else { Action::Compute });
            }
            None => {}
        }
        let now = self.judge_branches(members, pass, None);
        if is_fact(now) {
            return Some(Action::Compute);
        }
        // With `share` it is not known whether this branch will decide or follow; nor of a layer
        // that was not seen yet, whether it will be among the first.
        let chosen = matches!(self.policy.scope, Scope::Layers { first: Some(_), .. });
        let mut known = pass.step - next <= FORESIGHT
            && !(self.setting.share && self.branches.len() > 1)
            && !(chosen && self.site(place).is_none())
            && !(self.setting.ranks && self.has_lost(members));
        let (verdict, stale) = if waits || (known && next < pass.step) {
            self.play(ops, asked, &mut known, at)
        } else {
            (now, self.is_stale(asked))
        };
        match verdict {
            Verdict::Unknown(_) => None,
            verdict if is_fact(verdict) => Some(Action::Compute),
            _ if !known => None,
            Verdict::Compute(_) => Some(Action::Compute),
            _ if stale => Some(Action::Compute),
            Verdict::Skip => Some(Action::Skip),
            Verdict::Measure if self.policy.lagged && next == pass.step && !waits => {
                let Some(last) = self.last_measurement(members) else {
                    return Some(Action::Compute);
                };
                let change = last.read(ops);
                let metric = self.policy.metric(change);
                match self.judge_branches(members, pass, Some(metric)) {
                    Verdict::Skip if self.is_able(place, members, pass) => Some(Action::Skip),
                    _ => Some(Action::Compute),
                }
            }
            Verdict::Measure => None,
        }
    }

    /// What is kept now of some branch is too old.
    fn is_stale(&self, Asked { place, pass, members, .. }: &Asked) -> bool {
        let max_age = self.policy.keep.max_age;
        let newest = |member: &usize| self.site(*place)?.histories[*member].newest();
        members.iter().any(|member| is_stale(newest(member), pass, max_age))
    }

    /// Plays the rules forward from `next`, without touching them, through the open pass and those
    /// between: their verdict then, and whether what will be kept is too old. `known` ends where the
    /// passes between are uncertain.
    fn play(
        &mut self,
        ops: &mut O,
        asked: &Asked,
        known: &mut bool,
        mut at: impl FnMut(u32) -> Option<Between>,
    ) -> (Verdict, bool) {
        let Asked { place, pass, members, next, waits } = *asked;
        let answer = if waits { self.peek_open(ops, place) } else { None };
        let mut cast = std::mem::take(&mut self.players);
        let players = self.cast(&mut cast, asked);
        if let Some(turn) = &self.turn {
            *known &= answer.is_some();
            let action = answer.unwrap_or(Action::Compute);
            let in_it = players.iter_mut().filter(|player| turn.members.contains(&player.member));
            in_it.for_each(|player| player.record(&turn.pass, action));
        }
        let max_age = self.policy.keep.max_age;
        for step in if *known { next..pass.step } else { 0..0 } {
            let between = at(step).filter(|between| play_one(players, members, between, max_age));
            if between.is_none() {
                *known = false;
                break;
            }
        }
        let players = &players[..members.len()];
        let stale = players.iter().any(|player| is_stale(player.newest, pass, max_age));
        let verdict = judge(players.iter(), pass);
        self.players = cast;
        (verdict, stale)
    }

    /// The branches that are asked about, as they stand, and behind them the unconditional one.
    fn cast<'a>(&self, players: &'a mut Vec<Player>, asked: &Asked) -> &'a mut [Player] {
        let Asked { place, members, .. } = *asked;
        let uncond = self.setting.uncond;
        let others = (uncond < self.branches.len() && !members.contains(&uncond)).then_some(uncond);
        let n = members.len() + usize::from(others.is_some());
        if players.len() < n {
            players.resize_with(n, Player::default);
        }
        for (player, member) in players.iter_mut().zip(members.iter().copied().chain(others)) {
            player.rules.clone_from(&self.branches[member].rules);
            player.member = member;
            player.decides = !self.setting.share || member == members[0];
            player.newest = self.site(place).and_then(|site| site.histories[member].newest());
            player.newest_of_all = self.newest(member);
            player.keeps = self.keeps(member);
        }
        &mut players[..n]
    }
}

/// Plays one pass; false if it is not certain what it will do.
fn play_one(
    players: &mut [Player],
    members: &[usize],
    Between { pass, without, with }: &Between,
    max_age: Option<u32>,
) -> bool {
    let present = |player: &Player| match members.contains(&player.member) {
        true => *without != Some(player.member),
        false => *with == Some(player.member),
    };
    let stale = |of: fn(&Player) -> Option<f64>| {
        players.iter().any(|p| present(p) && is_stale(of(p), pass, max_age))
    };
    // A site that lacks a value computes by itself in a pass that is skipped.
    let alone = stale(|player| player.newest);
    let action = match judge(players.iter().filter(|p| present(p)), pass) {
        Verdict::Compute(_) => Action::Compute,
        _ if stale(|player| player.newest_of_all) => Action::Compute,
        Verdict::Skip => Action::Skip,
        Verdict::Measure | Verdict::Unknown(_) => return false,
    };
    for player in players.iter_mut().filter(|player| present(player)) {
        player.record(pass, action);
        if alone {
            player.compute(pass);
        }
    }
    true
}
