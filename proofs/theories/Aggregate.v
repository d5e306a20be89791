(** * Aggregate: one normal with the summed variance stands for the draws of many steps.

    A coordinate moves by  w <- (1 - lr_t lam) w - lr_t z,  z ~ N(0, variance_t),  lam >= 0 being weight decay. Between
    two reads it takes n such steps without a gradient, and aggregate mode replaces them by one draw.

    [M] is any commutative monad with a family [gauss mean variance] about which only two things are assumed: variance 0
    is certainty, and an affine map of a Gaussian with a Gaussian added is the Gaussian with the mean and the variance
    that this has ([gauss_affine]; GaussianDensity.v proves it of densities). Where such a monad comes from is measure
    theory and is not built here; GaussianCoupling.v reaches the same end without one, and FiniteLaws.v has a
    counterpart on the integers without any assumption. *)

Require Import List Arith Lia Reals Lra.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule FiniteLaws.
Local Open Scope R_scope.

Section Gaussian.
Context {M : Set -> Type} {CM : CommMonad M}.
Variable gauss : R -> R -> M R.
Hypothesis gauss_certain : forall m, meq (gauss m 0) (ret m).
Hypothesis gauss_affine : forall a m v v', 0 <= v -> 0 <= v' ->
  meq (bind (gauss m v) (fun x => gauss (a * x) v')) (gauss (a * m) (a * a * v + v')).

Variables rate variance : nat -> R.
Hypothesis variance_nonneg : forall t, 0 <= variance t.
Variable decay : R.

(** What n steps from [lo] on multiply a weight by, and the variance that they add to it. *)
Definition keep (t : nat) : R := 1 - rate t * decay.

Fixpoint factor (lo n : nat) : R := match n with O => 1 | S n => keep (lo + n) * factor lo n end.

Fixpoint summed_variance (lo n : nat) : R :=
  match n with
  | O => 0
  | S n => keep (lo + n) * keep (lo + n) * summed_variance lo n + rate (lo + n) * rate (lo + n) * variance (lo + n)
  end.

(** One draw for the steps since, ..., until - 1. *)
Definition aggregate (row since until : nat) (w : R) : M R :=
  gauss (factor since (until - since) * w) (summed_variance since (until - since)).

(** One step of eager: w <- (1 - lr_t lam) w - lr_t z. *)
Definition one_step (t : nat) (w : R) : M R := gauss (keep t * w) (rate t * rate t * variance t).

Lemma summed_variance_nonneg lo n : 0 <= summed_variance lo n.
Proof.
  induction n; cbn [summed_variance]; [lra|].
  apply Rplus_le_le_0_compat; apply Rmult_le_pos; auto; apply Rle_0_sqr.
Qed.

Lemma aggregate_one row t w : aggregate row t (S t) w = one_step t w.
Proof.
  unfold aggregate, one_step. replace (S t - t)%nat with 1%nat by lia. cbn [factor summed_variance].
  rewrite Nat.add_0_r. f_equal; ring.
Qed.

Lemma aggregate_nothing row t w : meq (aggregate row t t w) (ret w).
Proof. unfold aggregate. rewrite Nat.sub_diag. cbn. rewrite Rmult_1_l. apply gauss_certain. Qed.

Lemma aggregate_adds row lo t w : (lo <= t)%nat ->
  meq (bind (aggregate row lo t w) (aggregate row t (S t))) (aggregate row lo (S t) w).
Proof.
  intro H. transitivity (bind (aggregate row lo t w) (one_step t)).
  { apply bind_cong; [reflexivity|]. intro x. rewrite aggregate_one. reflexivity. }
  unfold aggregate, one_step. replace (S t - lo)%nat with (S (t - lo)) by lia. cbn [factor summed_variance].
  replace (lo + (t - lo))%nat with t by lia.
  replace (keep t * factor lo (t - lo) * w) with (keep t * (factor lo (t - lo) * w)) by ring. apply gauss_affine.
  - apply summed_variance_nonneg.
  - apply Rmult_le_pos; [apply Rle_0_sqr|apply variance_nonneg].
Qed.

(** Law(eager) = Law(lazy with one draw a span), for SGD with a declared rate and weight decay.
    If Gaussians add up as they should, aggregated noise gives a run whose law is that of the eager run: claim L1. *)
Theorem aggregate_is_eager {Grad Side : Set} (rows : list nat)
  (plan : nat -> Side -> M (Program R (list nat * Grad * Side))) (look_ahead : nat -> Side -> list nat)
  (update : nat -> list nat -> Grad -> list R -> list R) (steps : nat) (W : Table R) (side : Side) :
  NoDup rows ->
  (forall t s, exists q : M {p | within rows p}, meq (plan t s) (bind q (fun p => ret (proj1_sig p)))) ->
  (forall t s, incl (look_ahead t s) rows) ->
  meq (eager_run W side 0 steps rows plan update (by_row aggregate))
      (bind (lazy_run W (fun _ => O) side 0 steps plan look_ahead update (by_row aggregate))
            (fun '(L, H, side') => bind (release L H steps rows (by_row aggregate)) (fun '(W', _) => ret (W', side')))).
Proof.
  intros Hrows Hplan Hahead. apply (lazy_is_eager aggregate); auto.
  - exact aggregate_nothing.
  - exact aggregate_adds.
  - intros rs since until table _. rewrite by_row_each_row. reflexivity.
Qed.
End Gaussian.

(** ** The variance of a span *)

Lemma sum_from (c : R) (l : list R) : fold_right Rplus c l = fold_right Rplus 0 l + c.
Proof. induction l as [|x l IH]; cbn [fold_right]; [|rewrite IH]; ring. Qed.

(** Without weight decay: variance of a span = sum over t of lr_t^2 s_t^2.
    The aggregated draw has the sum of the variances that the steps owe. *)
Theorem variance_is_sum rate variance lo n :
  summed_variance rate variance 0 lo n = fold_right Rplus 0 (map (fun t => rate t ^ 2 * variance t) (seq lo n)).
Proof.
  induction n as [|n IH]; [reflexivity|]. rewrite seq_S, map_app, fold_right_app. cbn [summed_variance map fold_right].
  rewrite IH, (sum_from (_ + 0)). unfold keep. ring.
Qed.

(** What step lo + i leaves of its variance after n steps. *)
Definition left_of_step rate variance decay lo n i : R :=
  factor rate decay (S (lo + i)) (n - S i) ^ 2 * (rate (lo + i)%nat ^ 2 * variance (lo + i)%nat).

(** With it: variance = sum over t of (product of the later factors)^2 lr_t^2 s_t^2. *)
Theorem variance_with_decay rate variance decay lo n :
  summed_variance rate variance decay lo n
  = fold_right Rplus 0 (map (left_of_step rate variance decay lo n) (seq 0 n)).
Proof.
  unfold left_of_step.
  induction n as [|n IH]; [reflexivity|]. rewrite seq_S, map_app, fold_right_app.
  cbn [summed_variance map fold_right plus].
  rewrite Nat.sub_diag, (sum_from (_ + 0)), IH. cbn [factor].
  assert (E : forall l, (forall i, In i l -> (i < n)%nat) ->
    keep rate decay (lo + n) * keep rate decay (lo + n)
      * fold_right Rplus 0 (map (left_of_step rate variance decay lo n) l)
    = fold_right Rplus 0 (map (left_of_step rate variance decay lo (S n)) l)).
  { unfold left_of_step. induction l as [|i l IHl]; intro H; cbn [map fold_right]; [ring|].
    rewrite <- IHl by (intros; apply H; now right). assert (Hi := H i (or_introl eq_refl)).
    replace (S n - S i)%nat with (S (n - S i)) by lia. cbn [factor].
    replace (S (lo + i) + (n - S i))%nat with (lo + n)%nat by lia. ring. }
  unfold left_of_step in E. rewrite E by (intros i Hi; apply in_seq in Hi; lia). ring.
Qed.

(** Clocks: if every step adds its variance to V, a span's variance is V(until) - V(since). *)
Theorem variance_on_the_clock rate variance clock since until :
  (forall t, clock (S t) = clock t + rate t ^ 2 * variance t) -> (since <= until)%nat ->
  summed_variance rate variance 0 since (until - since) = clock until - clock since.
Proof.
  intros H Hle. induction Hle as [|until Hle IH].
  - rewrite Nat.sub_diag. cbn [summed_variance]. ring.
  - replace (S until - since)%nat with (S (until - since)) by lia. cbn [summed_variance]. rewrite IH, H.
    replace (since + (until - since))%nat with until by lia. unfold keep. ring.
Qed.
