(** Replay: in plain execution lazy and eager do the same operations on every row in the same order.

    Nothing is assumed about the operations: values are any type, and no law of arithmetic is used. So the equality is one
    of bits, for float32 as for anything else, NaN and infinities included. *)
Require Import List Arith Lia.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule FiniteLaws.

Local Notation Plain := (fun A : Set => A).

Section Replay.
Context {Val Grad Side : Set}.
Variable noise : nat -> nat -> Val -> Val.  (** [noise row step]: pay one step. *)

(** Pay the steps since, ..., until - 1 one by one, in order. *)
Definition replay (row since until : nat) (w : Val) : Val :=
  fold_left (fun w step => noise row step w) (seq since (until - since)) w.

Lemma replay_nothing r t w : replay r t t w = w.
Proof. unfold replay. now rewrite Nat.sub_diag. Qed.

Lemma replay_adds r a t w : a <= t -> replay r t (S t) (replay r a t w) = replay r a (S t) w.
Proof.
  intro H. unfold replay. replace (S t - t) with 1 by lia. replace (S t - a) with (S (t - a)) by lia.
  rewrite (seq_S (t - a) a), fold_left_app. cbn. now replace (a + (t - a)) with t by lia.
Qed.

(** The generated [pay_steps], on many rows at once, replays each of them: as long as one payment treats rows one by one,
    the loop over steps does too. *)
Theorem pay_steps_replays (pay : list nat -> nat -> nat -> list Val -> list Val) rows since until (table : Table Val) :
  (forall step (table : Table Val), pay rows step (step + 1) (map table rows) = map (fun r => noise r step (table r)) rows) ->
  pay_steps rows since until (map table rows) pay = map (fun r => replay r since until (table r)) rows.
Proof.
  intro Hp. unfold pay_steps, replay. cbn zeta. generalize (until - since). intro n.
  revert since table. induction n as [|n IH]; intros since table; [reflexivity|]. cbn [seq fold_left]. rewrite Hp. apply (IH (S since) (fun r => noise r since (table r))).
Qed.

Variables (rows : list nat) (plan : nat -> Side -> Program Val (list nat * Grad * Side)).
Variables (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list Val -> list Val).
Hypothesis rows_once : NoDup rows.
Hypothesis plan_within : forall t side, within rows (plan t side).
Hypothesis look_ahead_within : forall t side, incl (look_ahead t side) rows.

Let owed := @by_row Plain Identity Val replay.

(** Theorem REPLAY. The released table, and everything ever read, is the same, bit for bit. *)
Theorem replay_same_bits steps W side :
  eager_run (CM := Identity) W side 0 steps rows plan update owed =
  let '(L, H, side') := lazy_run (CM := Identity) W (fun _ => 0) side 0 steps plan look_ahead update owed in
  let '(W', _) := release (CM := Identity) L H steps rows owed in
  (W', side').
Proof.
  apply (@lazy_is_eager Plain Identity Val Grad Side replay); auto.
  - exact replay_nothing.
  - exact replay_adds.
  - intros rs since until table _. unfold owed. now rewrite by_row_each_row.
  - intros t s. now exists (exist _ (plan t s) (plan_within t s)).
Qed.
End Replay.
