(** * FloatBounds: how far float32 rounding can drive the trainers apart, for any number of steps.

    Arithmetic is IEEE 754 binary32, round to nearest, ties to even, subnormals included, one rounding for each
    operation: [w <- fl(w - fl(rate * G))], then [w <- fl(w - fl(payment))], as docs/arithmetic.md says. Sections 1-3
    are about real numbers in the binary32 format without an upper end; section 4 carries claim E2 over to binary32
    values with infinities and NaN: it is enough that the final values are finite.

    [bridge_rounding_bound] is, expression for expression, the function of that name in contract/bounds.py, as a
    function on real numbers; Python evaluates it in float64, with a relative error of a few 2^-53 that is not
    treated here. *)

From Coq Require Import Reals ZArith List Lia Lra.
From Flocq Require Import Core Relative Plus_error Binary Bits.
Import ListNotations.
Local Open Scope R_scope.

(** ** 1. One operation *)

#[local] Instance positive_precision : Prec_gt_0 24 := eq_refl.

Definition fexp32 := FLT_exp (-149) 24.
Notation fl := (round radix2 fexp32 ZnearestE).
Notation float32 := (generic_format radix2 fexp32).

(** [UNIT_ROUNDOFF] and [UNDERFLOW] of contract/bounds.py. *)
Definition unit_roundoff : R := bpow radix2 (-24).
Definition underflow : R := bpow radix2 (-150).

Lemma unit_roundoff_pos : 0 < unit_roundoff < 1.
Proof. unfold unit_roundoff. split; [apply bpow_gt_0|]. change 1 with (bpow radix2 0). now apply bpow_lt. Qed.

Lemma underflow_pos : 0 < underflow.
Proof. apply bpow_gt_0. Qed.

Lemma u_ro_is_unit_roundoff : u_ro radix2 24 = unit_roundoff.
Proof. unfold u_ro, unit_roundoff. change (/ 2) with (bpow radix2 (-1)). now rewrite <- bpow_plus. Qed.

Lemma float32_fl x : float32 (fl x).
Proof. apply generic_format_round; [now apply FLT_exp_valid|apply valid_rnd_N]. Qed.

(** |fl(x - y) - (x - y)| <= 2^-24 |fl(x - y)| for x, y in float32.
    A rounded subtraction errs by at most the unit roundoff times its result, and by nothing if that is subnormal. *)
Lemma subtraction_error x y : float32 x -> float32 y ->
  Rabs (fl (x - y) - (x - y)) <= unit_roundoff * Rabs (fl (x - y)).
Proof.
  intros Hx Hy. destruct (FLT_plus_error_N_round_ex radix2 (-149) 24 (fun z => negb (Z.even z)) x (- y))
    as (e & He & E);
    [assumption|now apply generic_format_opp|].
  rewrite u_ro_is_unit_roundoff in He. change (round radix2 (FLT_exp (-149) 24) _ (x + - y)) with (fl (x - y)) in E.
  change (x + - y) with (x - y) in E. set (r := fl (x - y)) in *.
  replace (r - (x - y)) with (- (e * r)) by (rewrite E; ring).
  rewrite Rabs_Ropp, Rabs_mult. apply Rmult_le_compat_r; [apply Rabs_pos|exact He].
Qed.

(** |fl(x) - x| <= 2^-24 |x| + 2^-150 for every real x.
    Rounding a payment errs by at most the unit roundoff times its size, or by half the least subnormal. *)
Lemma payment_error x : Rabs (fl x - x) <= unit_roundoff * Rabs x + underflow.
Proof.
  destruct (error_N_FLT radix2 (-149) 24 eq_refl (fun z => negb (Z.even z)) x) as (e & h & He & Hh & _ & E).
  change (fl x) with (round radix2 (FLT_exp (-149) 24) (Znearest (fun z => negb (Z.even z))) x). rewrite E.
  replace (x * (1 + e) + h - x) with (e * x + h) by ring.
  eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_mult. apply Rplus_le_compat.
  - apply Rmult_le_compat_r; [apply Rabs_pos|]. eapply Rle_trans; [exact He|]. rewrite <- u_ro_is_unit_roundoff.
    apply Rle_refl.
  - eapply Rle_trans; [exact Hh|]. unfold underflow. change (/ 2) with (bpow radix2 (-1)). rewrite <- bpow_plus.
    apply Rle_refl.
Qed.

(** |fl(w - fl(d)) - (w - d)| <= 2^-24 (|fl(w - fl(d))| + |d|) + 2^-150.
    One payment, both roundings. *)
Lemma one_payment_error w d : float32 w ->
  Rabs (fl (w - fl d) - (w - d)) <= unit_roundoff * (Rabs (fl (w - fl d)) + Rabs d) + underflow.
Proof.
  intro Hw. assert (A := subtraction_error w (fl d) Hw (float32_fl d)). assert (B := payment_error d).
  replace (fl (w - fl d) - (w - d)) with ((fl (w - fl d) - (w - fl d)) + - (fl d - d)) by ring.
  eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp. lra.
Qed.

(** ** 2. Replay and aggregate against the payments in real numbers *)

Definition total (payments : list R) : R := fold_right Rplus 0 payments.
Definition magnitude (payments : list R) : R := fold_right (fun d s => Rabs d + s) 0 payments.

(** What replay computes: each payment rounded, each subtraction rounded, in order. *)
Definition replayed (w : R) (payments : list R) : R := fold_left (fun w d => fl (w - fl d)) payments w.

(** Every weight on the way, after the first subtraction, is at most [largest] in magnitude. *)
Fixpoint stays_within (largest w : R) (payments : list R) : Prop :=
  match payments with
  | [] => True
  | d :: rest => Rabs (fl (w - fl d)) <= largest /\ stays_within largest (fl (w - fl d)) rest
  end.

(** |replayed(w; d_1, ..., d_n) - (w - sum d_i)| <= 2^-24 (n W + sum |d_i|) + n 2^-150.
    After n payments replay is this far, at most, from the same payments in real numbers, W being the largest weight
    on the way: for every n. *)
Theorem replay_error largest : forall payments w, float32 w -> stays_within largest w payments ->
  float32 (replayed w payments)
  /\ Rabs (replayed w payments - (w - total payments))
     <= unit_roundoff * (INR (length payments) * largest + magnitude payments) + INR (length payments) * underflow.
Proof.
  induction payments as [|d rest IH]; intros w Hw Hs.
  - cbn. split; [assumption|]. replace (w - (w - 0)) with 0 by ring. rewrite Rabs_R0. lra.
  - destruct Hs as [Hd Hr]. destruct (IH (fl (w - fl d)) (float32_fl _) Hr) as [F E]. split; [exact F|].
    cbn [length total magnitude fold_right]. rewrite S_INR.
    change (replayed w (d :: rest)) with (replayed (fl (w - fl d)) rest). fold (total rest) (magnitude rest).
    assert (A := one_payment_error w d Hw).
    replace (replayed (fl (w - fl d)) rest - (w - (d + total rest)))
      with ((replayed (fl (w - fl d)) rest - (fl (w - fl d) - total rest)) + (fl (w - fl d) - (w - d))) by ring.
    eapply Rle_trans; [apply Rabs_triang|].
    assert (U : unit_roundoff * Rabs (fl (w - fl d)) <= unit_roundoff * largest)
      by (apply Rmult_le_compat_l; [apply Rlt_le, unit_roundoff_pos|exact Hd]).
    lra.
Qed.

Lemma sum_le_magnitude payments : Rabs (total payments) <= magnitude payments.
Proof.
  induction payments as [|d rest IH]; cbn; [rewrite Rabs_R0; lra|].
  eapply Rle_trans; [apply Rabs_triang|]. now apply Rplus_le_compat_l.
Qed.

(** |replayed(w; d_1, ..., d_n) - (w - sum d_i)| <= ((1 + 2^-24)^n - 1) (|w| + sum |d_i|) if the payments are float32.
    The same without knowing the weights on the way; for n far below 2^24 the factor is about n 2^-24. *)
Theorem replay_error_a_priori : forall payments w, float32 w -> (forall d, In d payments -> float32 d) ->
  float32 (replayed w payments)
  /\ Rabs (replayed w payments - (w - total payments))
     <= ((1 + unit_roundoff) ^ length payments - 1) * (Rabs w + magnitude payments).
Proof.
  assert (U := unit_roundoff_pos).
  induction payments as [|d rest IH]; intros w Hw Hd.
  - cbn. split; [assumption|]. replace (w - (w - 0)) with 0 by ring. rewrite Rabs_R0. lra.
  - assert (Fd : fl d = d) by (apply round_generic; [apply valid_rnd_N|apply Hd; now left]).
    destruct (IH (fl (w - fl d)) (float32_fl _)) as [F E]; [intros; apply Hd; now right|]. split; [exact F|].
    change (replayed w (d :: rest)) with (replayed (fl (w - fl d)) rest). rewrite Fd in *.
    cbn [length total magnitude fold_right pow]. fold (total rest) (magnitude rest).
    set (r := fl (w - d)) in *. set (p := (1 + unit_roundoff) ^ length rest) in *.
    assert (P : 1 <= p) by (apply pow_R1_Rle; lra).
    assert (A : Rabs (r - (w - d)) <= unit_roundoff * Rabs (w - d)).
    { destruct (FLT_plus_error_N_ex radix2 (-149) 24 (fun z => negb (Z.even z)) w (- d)) as (e & He & R0);
        [assumption|apply generic_format_opp, Hd; now left|].
      change (round radix2 (FLT_exp (-149) 24) _ (w + - d)) with r in R0. rewrite R0.
      replace ((w + - d) * (1 + e) - (w - d)) with (e * (w - d)) by ring. rewrite Rabs_mult.
      apply Rmult_le_compat_r; [apply Rabs_pos|]. eapply Rle_trans; [exact He|].
      rewrite <- u_ro_is_unit_roundoff. apply u_rod1pu_ro_le_u_ro. }
    assert (T : Rabs (w - d) <= Rabs w + Rabs d) by (eapply Rle_trans; [apply Rabs_triang|rewrite Rabs_Ropp; lra]).
    assert (R1 : Rabs r <= (1 + unit_roundoff) * (Rabs w + Rabs d)).
    { replace r with ((r - (w - d)) + (w - d)) by ring. eapply Rle_trans; [apply Rabs_triang|]. nra. }
    replace (replayed r rest - (w - (d + total rest))) with ((replayed r rest - (r - total rest)) + (r - (w - d)))
      by ring.
    eapply Rle_trans; [apply Rabs_triang|].
    assert (M : 0 <= magnitude rest) by (eapply Rle_trans; [apply Rabs_pos|apply sum_le_magnitude]).
    assert (E1 : (p - 1) * (Rabs r + magnitude rest)
                 <= (p - 1) * ((1 + unit_roundoff) * (Rabs w + Rabs d) + magnitude rest))
      by (apply Rmult_le_compat_l; lra).
    assert (E2 : unit_roundoff * Rabs (w - d) <= unit_roundoff * (Rabs w + Rabs d)) by (apply Rmult_le_compat_l; lra).
    assert (E3 : 0 <= unit_roundoff * (p * magnitude rest)) by (apply Rmult_le_pos; [lra|apply Rmult_le_pos; lra]).
    lra.
Qed.

(** |fl(w - fl(S z)) - (w - S' z)| <= 2^-24 (|fl(w - fl(S z))| + |S z|) + 2^-150 + e |z| if |S - S'| <= e.
    One aggregated payment errs by two roundings, whatever the number of steps it stands for; S is the float32 scale
    and S' the square root of the summed variance in real numbers. *)
Theorem aggregate_error w scale exact_scale z gap : float32 w -> Rabs (scale - exact_scale) <= gap ->
  Rabs (fl (w - fl (scale * z)) - (w - exact_scale * z))
  <= unit_roundoff * (Rabs (fl (w - fl (scale * z))) + Rabs (scale * z)) + underflow + gap * Rabs z.
Proof.
  intros Hw Hg. assert (A := one_payment_error w (scale * z) Hw).
  replace (fl (w - fl (scale * z)) - (w - exact_scale * z))
    with ((fl (w - fl (scale * z)) - (w - scale * z)) + - ((scale - exact_scale) * z)) by ring.
  eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp, Rabs_mult.
  apply Rplus_le_compat; [exact A|]. apply Rmult_le_compat_r; [apply Rabs_pos|exact Hg].
Qed.

(** ** 3. Bridge mode: claim E2 *)

(** contract/bounds.py, [bridge_rounding_bound], line by line. *)
Definition bridge_rounding_bound (steps touches : nat) (largest_weight largest_increment : R) : R :=
  let ops := INR steps + 3 * INR touches + 1 in
  let error := unit_roundoff * (ops * largest_weight + 2 * INR steps * largest_increment) in
  (error + (2 * INR steps + 2) * underflow) / (1 - unit_roundoff * (2 * INR touches + 1)).

(** What a step does with the row, before its noise: nothing; settle it without a gradient (a row that is read and gets
    no gradient, an early settlement); or settle it, read it and subtract the float32 gradient fl(rate * G). *)
Inductive use := Unread | Settled | Touched (gradient : R).

Definition after_gradient (w : R) (u : use) : R := match u with Touched g => fl (w - g) | _ => w end.

Section Bridge.
Variable initial : R.
Variable uses : nat -> use.
(** The path of one coordinate, in the unit of the weights: P(t) * 2^u. *)
Variable path : nat -> R.

(** The weight of the eager trainer after t steps. *)
Fixpoint eager (t : nat) : R :=
  match t with
  | O => initial
  | S t => fl (after_gradient (eager t) (uses t) - fl (path (S t) - path t))
  end.

(** The lazy trainer: a weight, and the number of steps that it has paid for. A row that owes nothing is left alone. *)
Definition settle (row : R * nat) (until : nat) : R * nat :=
  let '(w, since) := row in if (since <? until)%nat then (fl (w - fl (path until - path since)), until) else row.

Fixpoint lazy (t : nat) : R * nat :=
  match t with
  | O => (initial, O)
  | S t => match uses t with
           | Unread => lazy t
           | u => let '(w, since) := settle (lazy t) t in (after_gradient w u, since)
           end
  end.

(** The lazy weight as step t reads it, and, for t the number of steps run, as it is released. *)
Definition settled_weight (t : nat) : R := fst (settle (lazy t) t).

(** Steps before t that used the row. *)
Fixpoint touches (t : nat) : nat :=
  match t with O => O | S t => match uses t with Unread => touches t | _ => S (touches t) end end.

Lemma touches_le t : (touches t <= t)%nat.
Proof. induction t; cbn; [lia|destruct (uses t); lia]. Qed.

Lemma touches_mono s t : (s <= t)%nat -> (touches s <= touches t)%nat.
Proof. induction 1; cbn; [lia|destruct (uses m); lia]. Qed.

(** The same bookkeeping in real numbers: the sum of the gradients before t, and where the weight would be, had it paid
    through step [paid] without rounding. *)
Fixpoint gradients (t : nat) : R :=
  match t with O => 0 | S t => gradients t + match uses t with Touched g => g | _ => 0 end end.
Definition exact (t paid : nat) : R := initial - gradients t - (path paid - path O).

Variable steps : nat.
Variables largest_weight largest_increment : R.
Hypothesis initial_float32 : float32 initial.
Hypothesis gradients_float32 : forall t g, (t < steps)%nat -> uses t = Touched g -> float32 g.
(** W: the largest eager weight after any single subtraction; N: the largest eager payment of one step. *)
Hypothesis weights_bounded : forall t, (t < steps)%nat ->
  Rabs (after_gradient (eager t) (uses t)) <= largest_weight /\ Rabs (eager (S t)) <= largest_weight.
Hypothesis increments_bounded : forall t, (t < steps)%nat -> Rabs (path (S t) - path t) <= largest_increment.

Lemma span_bounded a b : (a <= b <= steps)%nat -> Rabs (path b - path a) <= INR (b - a) * largest_increment.
Proof.
  intros [Hab Hb]. induction Hab as [|b Hab IH].
  - rewrite Nat.sub_diag. replace (path a - path a) with 0 by ring. rewrite Rabs_R0. cbn. lra.
  - replace (S b - a)%nat with (S (b - a)) by lia. rewrite S_INR.
    replace (path (S b) - path a) with ((path b - path a) + (path (S b) - path b)) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. assert (A := IH ltac:(lia)).
    assert (B := increments_bounded b ltac:(lia)). lra.
Qed.

Lemma eager_float32 t : float32 (eager t).
Proof. destruct t; [exact initial_float32|apply float32_fl]. Qed.

(** Rounding of the eager run: one unit of |w| for each subtraction, one of |increment| for each payment. *)
Lemma eager_rounding t : (t <= steps)%nat ->
  Rabs (eager t - exact t t)
  <= INR (t + touches t) * (unit_roundoff * largest_weight) + INR t * (unit_roundoff * largest_increment + underflow).
Proof.
  induction t as [|t IH]; intro Ht.
  - cbn. unfold exact. cbn. replace (initial - (initial - 0 - (path 0 - path 0))) with 0 by ring. rewrite Rabs_R0. lra.
  - specialize (IH ltac:(lia)). destruct (weights_bounded t Ht) as [Wg Wn]. assert (Hn := increments_bounded t Ht).
    assert (U := unit_roundoff_pos). set (n := path (S t) - path t) in *.
    assert (Fg : float32 (after_gradient (eager t) (uses t))).
    { destruct (uses t); cbn; auto using eager_float32, float32_fl. }
    assert (En : Rabs (eager (S t) - (after_gradient (eager t) (uses t) - n))
      <= unit_roundoff * (Rabs (eager (S t)) + Rabs n) + underflow) by exact (one_payment_error _ n Fg).
    assert (Un : unit_roundoff * (Rabs (eager (S t)) + Rabs n) <= unit_roundoff * (largest_weight + largest_increment))
      by (apply Rmult_le_compat_l; lra).
    assert (Ex : exact (S t) (S t) = exact t t - match uses t with Touched g => g | _ => 0 end - n).
    { unfold exact, n. cbn [gradients]. ring. }
    rewrite Ex. cbn [touches]. destruct (uses t) as [| |g] eqn:Eu; cbn [after_gradient] in *.
    + replace (eager (S t) - (exact t t - 0 - n)) with ((eager (S t) - (eager t - n)) + (eager t - exact t t)) by ring.
      eapply Rle_trans; [apply Rabs_triang|]. rewrite plus_INR, S_INR in *. lra.
    + replace (eager (S t) - (exact t t - 0 - n)) with ((eager (S t) - (eager t - n)) + (eager t - exact t t)) by ring.
      assert (0 <= unit_roundoff * largest_weight)
        by (apply Rmult_le_pos; [lra|eapply Rle_trans; [apply Rabs_pos|exact Wn]]).
      eapply Rle_trans; [apply Rabs_triang|]. rewrite plus_INR in *. rewrite !S_INR in *. lra.
    + assert (Eg := subtraction_error (eager t) g (eager_float32 t) (gradients_float32 t g Ht Eu)).
      assert (Ug : unit_roundoff * Rabs (fl (eager t - g)) <= unit_roundoff * largest_weight)
        by (apply Rmult_le_compat_l; lra).
      replace (eager (S t) - (exact t t - g - n))
        with ((eager (S t) - (fl (eager t - g) - n)) + ((fl (eager t - g) - (eager t - g)) + (eager t - exact t t)))
          by ring.
      eapply Rle_trans; [apply Rabs_triang|]. eapply Rle_trans; [apply Rplus_le_compat_l, Rabs_triang|].
      rewrite plus_INR in *. rewrite !S_INR in *. lra.
Qed.

(** One rounded operation whose exact result is known up to [err], beside an eager weight of at most W: if the bound B
    leaves room for the operation's own rounding, the result stays within B of the eager weight, and within W + B. *)
Lemma stays_close B err r e : Rabs e <= largest_weight -> Rabs (r - e) <= err + unit_roundoff * Rabs r ->
  err + unit_roundoff * (largest_weight + B) <= B -> Rabs r <= largest_weight + B /\ Rabs (r - e) <= B.
Proof.
  intros He Hr HB. assert (U := unit_roundoff_pos).
  assert (T := Rabs_triang e (r - e)). replace (e + (r - e)) with r in T by ring.
  assert (L : Rabs r <= largest_weight + B).
  { apply Rmult_le_reg_l with (1 - unit_roundoff); [lra|]. lra. }
  split; [exact L|]. assert (unit_roundoff * Rabs r <= unit_roundoff * (largest_weight + B))
    by (apply Rmult_le_compat_l; lra). lra.
Qed.

(** The bound itself, and why it leaves room for everything that is charged to it. *)
Hypothesis largest_weight_nonneg : 0 <= largest_weight.
Hypothesis denominator_pos : unit_roundoff * (2 * INR (touches steps) + 1) < 1.

Let bound : R := bridge_rounding_bound steps (touches steps) largest_weight largest_increment.
Let uW : R := unit_roundoff * largest_weight.
Let uN : R := unit_roundoff * largest_increment.
Let uL : R := unit_roundoff * (largest_weight + bound).

Lemma increment_nonneg : (0 < steps)%nat -> 0 <= largest_increment.
Proof. intro H. eapply Rle_trans; [apply Rabs_pos|apply (increments_bounded O H)]. Qed.

Lemma steps_uN_nonneg n : (n <= steps)%nat -> 0 <= INR n * uN.
Proof.
  intro H. destruct n as [|n]; [cbn; lra|]. apply Rmult_le_pos; [apply pos_INR|].
  apply Rmult_le_pos; [apply Rlt_le, unit_roundoff_pos|apply increment_nonneg; lia].
Qed.

Lemma bound_equation :
  bound = (INR steps + 3 * INR (touches steps) + 1) * uW + 2 * (INR steps * uN) + (2 * INR steps + 2) * underflow
          + (2 * INR (touches steps) + 1) * (unit_roundoff * bound).
Proof.
  assert (D : bound * (1 - unit_roundoff * (2 * INR (touches steps) + 1))
    = (INR steps + 3 * INR (touches steps) + 1) * uW + 2 * (INR steps * uN) + (2 * INR steps + 2) * underflow).
  { unfold bound, bridge_rounding_bound, uW, uN. field. lra. }
  lra.
Qed.

Lemma bound_nonneg : 0 <= bound.
Proof.
  assert (U := unit_roundoff_pos). assert (E := underflow_pos). assert (B := bound_equation).
  assert (H1 := steps_uN_nonneg steps (le_n _)). assert (K := pos_INR (touches steps)). assert (T := pos_INR steps).
  assert (H2 : 0 <= (INR steps + 3 * INR (touches steps) + 1) * uW)
    by (apply Rmult_le_pos; [lra|apply Rmult_le_pos; lra]).
  assert (H3 : 0 <= (2 * INR steps + 2) * underflow) by (apply Rmult_le_pos; lra).
  apply Rmult_le_reg_l with (1 - unit_roundoff * (2 * INR (touches steps) + 1)); lra.
Qed.

Lemma room t k j : (t <= steps)%nat -> (k <= touches steps)%nat -> (j <= 2 * touches steps + 1)%nat ->
  INR (t + k) * uW + INR t * (uN + underflow) + (INR j * uL + INR t * uN + INR (k + 1) * underflow) <= bound.
Proof.
  intros Ht Hk Hj. assert (U := unit_roundoff_pos). assert (E := underflow_pos). assert (B := bound_equation).
  assert (PB := bound_nonneg).
  assert (PW : 0 <= uW) by (apply Rmult_le_pos; lra). assert (PL : 0 <= uL) by (apply Rmult_le_pos; lra).
  assert (KT := le_INR _ _ (touches_le steps)). apply le_INR in Hk. apply le_INR in Hj. assert (HtR := le_INR _ _ Ht).
  rewrite plus_INR, mult_INR in Hj. rewrite !plus_INR. cbn [INR] in *.
  assert (M1 : (INR t + INR k) * uW <= (INR steps + INR (touches steps)) * uW) by (apply Rmult_le_compat_r; lra).
  assert (M2 : INR j * uL <= (2 * INR (touches steps) + 1) * uL) by (apply Rmult_le_compat_r; lra).
  assert (M3 : INR t * uN <= INR steps * uN).
  { assert (P := steps_uN_nonneg (steps - t) ltac:(lia)). rewrite minus_INR in P by exact Ht. lra. }
  assert (M4 : (INR t + INR k + 1) * underflow <= (2 * INR steps + 2) * underflow) by (apply Rmult_le_compat_r; lra).
  assert (L : uL = uW + unit_roundoff * bound) by (unfold uL, uW; ring). rewrite L in *. lra.
Qed.

(** How far the lazy weight is from its place, after t steps of which it has paid for [since]. *)
Definition lazy_within (t : nat) : Prop :=
  let '(w, since) := lazy t in
  (since <= t)%nat /\ float32 w
  /\ Rabs (w - exact t since) <= INR (2 * touches t) * uL + INR since * uN + INR (touches t) * underflow.

Lemma settled_within t : (t <= steps)%nat -> lazy_within t ->
  float32 (settled_weight t) /\ snd (settle (lazy t) t) = t
  /\ Rabs (settled_weight t - exact t t) <= INR (2 * touches t + 1) * uL + INR t * uN + INR (touches t + 1) * underflow
  /\ Rabs (settled_weight t - eager t) <= bound.
Proof.
  intros Ht H. unfold lazy_within, settled_weight in *. destruct (lazy t) as [w since]. destruct H as (Hs & Fw & Hw).
  assert (U := unit_roundoff_pos). assert (E := underflow_pos). assert (PB := bound_nonneg).
  assert (PL : 0 <= uL) by (apply Rmult_le_pos; lra).
  assert (Er := eager_rounding t Ht). fold uW uN in Er.
  assert (Rm := room t (touches t) (2 * touches t + 1) Ht (touches_mono t steps Ht)).
  assert (Hj : (2 * touches t + 1 <= 2 * touches steps + 1)%nat) by (assert (A := touches_mono t steps Ht); lia).
  specialize (Rm Hj). rewrite !(plus_INR _ 1) in *. cbn [INR] in *.
  cbn [settle]. destruct (Nat.ltb_spec since t) as [Hlt|Hge]; cbn [fst snd].
  - (* it owes the steps since, ..., t - 1 *)
    set (p := path t - path since) in *. set (r := fl (w - fl p)) in *.
    assert (Ep := one_payment_error w p Fw). fold r in Ep.
    assert (Sp := span_bounded since t ltac:(lia)). fold p in Sp. rewrite minus_INR in Sp by lia.
    assert (Up : unit_roundoff * Rabs p <= (INR t - INR since) * uN)
      by (unfold uN; apply Rmult_le_compat_l with (r := unit_roundoff) in Sp; lra).
    assert (D : Rabs (r - exact t t)
      <= INR (2 * touches t) * uL + INR t * uN + (INR (touches t) + 1) * underflow + unit_roundoff * Rabs r).
    { replace (r - exact t t) with ((r - (w - p)) + (w - exact t since)) by (unfold exact, p; ring).
      eapply Rle_trans; [apply Rabs_triang|]. lra. }
    assert (De : Rabs (r - eager t) <= INR (2 * touches t) * uL + INR t * uN + (INR (touches t) + 1) * underflow
      + (INR (t + touches t) * uW + INR t * (uN + underflow)) + unit_roundoff * Rabs r).
    { replace (r - eager t) with ((r - exact t t) + - (eager t - exact t t)) by ring.
      eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp. lra. }
    assert (We : Rabs (eager t) <= largest_weight) by (destruct t as [|t']; [lia|apply weights_bounded; lia]).
    destruct (stays_close bound _ r (eager t) We De) as [Lr Br]; [fold uL; lra|].
    assert (Ur : unit_roundoff * Rabs r <= uL) by (apply Rmult_le_compat_l; lra).
    split; [apply float32_fl|]. split; [reflexivity|]. split; [lra|exact Br].
  - (* it owes nothing *)
    replace since with t in * by lia. split; [exact Fw|]. split; [reflexivity|]. split; [lra|].
    replace (w - eager t) with ((w - exact t t) + - (eager t - exact t t)) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp. lra.
Qed.

Lemma lazy_rounding t : (t <= steps)%nat -> lazy_within t.
Proof.
  induction t as [|t IH]; intro Ht.
  - unfold lazy_within. cbn. split; [lia|]. split; [exact initial_float32|].
    unfold exact. cbn. replace (initial - (initial - 0 - (path 0 - path 0))) with 0 by ring. rewrite Rabs_R0. lra.
  - assert (Ht' : (t <= steps)%nat) by lia. specialize (IH Ht').
    destruct (settled_within t Ht' IH) as (Fr & Sr & Dr & Br). unfold settled_weight in *.
    assert (U := unit_roundoff_pos). assert (E := underflow_pos). assert (PB := bound_nonneg).
    assert (PL : 0 <= uL) by (apply Rmult_le_pos; lra).
    unfold lazy_within in *. cbn [lazy touches]. assert (Kt := touches_mono (S t) steps Ht). cbn [touches] in Kt.
    destruct (uses t) as [| |g] eqn:Eu.
    + destruct (lazy t) as [w since]. destruct IH as (Hs & Fw & Hw). split; [lia|]. split; [exact Fw|].
      replace (exact (S t) since) with (exact t since) by (unfold exact; cbn [gradients]; rewrite Eu; ring). exact Hw.
    + destruct (settle (lazy t) t) as [r since]. cbn [fst snd after_gradient] in *. subst since. split; [lia|].
      split; [exact Fr|].
      replace (exact (S t) t) with (exact t t) by (unfold exact; cbn [gradients]; rewrite Eu; ring).
      replace (2 * S (touches t))%nat with (2 * touches t + 1 + 1)%nat by lia. rewrite (plus_INR (2 * touches t + 1) 1).
      replace (S (touches t)) with (touches t + 1)%nat by lia. cbn [INR]. lra.
    + destruct (settle (lazy t) t) as [r since]. cbn [fst snd after_gradient] in *. subst since.
      assert (Fg := gradients_float32 t g Ht Eu).
      destruct (weights_bounded t Ht) as [Wg _]. rewrite Eu in Wg. cbn [after_gradient] in Wg.
      replace (exact (S t) t) with (exact t t - g) by (unfold exact; cbn [gradients]; rewrite Eu; ring).
      set (r' := fl (r - g)) in *. set (e' := fl (eager t - g)) in *.
      assert (Er := subtraction_error r g Fr Fg). fold r' in Er.
      assert (Ee := subtraction_error (eager t) g (eager_float32 t) Fg). fold e' in Ee.
      assert (Ue : unit_roundoff * Rabs e' <= uW) by (apply Rmult_le_compat_l; lra).
      assert (Re := eager_rounding t Ht'). fold uW uN in Re.
      assert (D : Rabs (r' - (exact t t - g))
        <= INR (2 * touches t + 1) * uL + INR t * uN + INR (touches t + 1) * underflow + unit_roundoff * Rabs r').
      { replace (r' - (exact t t - g)) with ((r' - (r - g)) + (r - exact t t)) by ring.
        eapply Rle_trans; [apply Rabs_triang|]. lra. }
      assert (De : Rabs (r' - e') <= INR (2 * touches t + 1) * uL + INR t * uN + INR (touches t + 1) * underflow
        + (INR (t + S (touches t)) * uW + INR t * (uN + underflow)) + unit_roundoff * Rabs r').
      { replace (r' - e') with ((r' - (exact t t - g)) + (- (e' - (eager t - g)) + - (eager t - exact t t))) by ring.
        eapply Rle_trans; [apply Rabs_triang|]. eapply Rle_trans; [apply Rplus_le_compat_l, Rabs_triang|].
        rewrite !Rabs_Ropp. replace (t + S (touches t))%nat with (S (t + touches t)) by lia.
        rewrite (S_INR (t + touches t)). lra. }
      assert (Rm := room t (S (touches t)) (2 * touches t + 1 + 1) Ht' Kt ltac:(lia)).
      assert (PW : 0 <= uW) by (apply Rmult_le_pos; lra).
      destruct (stays_close bound _ r' e' Wg De) as [Lr _].
      { fold uL. rewrite (plus_INR (2 * touches t + 1) 1) in Rm.
        replace (S (touches t) + 1)%nat with (touches t + 1 + 1)%nat in Rm by lia.
        rewrite (plus_INR (touches t + 1) 1) in Rm. cbn [INR] in Rm. lra. }
      assert (Ur : unit_roundoff * Rabs r' <= uL) by (apply Rmult_le_compat_l; lra).
      split; [lia|]. split; [apply float32_fl|].
      replace (2 * S (touches t))%nat with (2 * touches t + 1 + 1)%nat by lia. rewrite (plus_INR (2 * touches t + 1) 1).
      replace (S (touches t)) with (touches t + 1)%nat by lia. cbn [INR]. lra.
Qed.

(** |lazy(t) - eager(t)| <= (u ((T + 3K + 1) W + 2 T N) + (2T + 2) 2^-150) / (1 - u (2K + 1)),  u = 2^-24.
    At every read and at release, lazy and eager weights differ by no more than the number that claim E2 reports, if
    both subtract the same float32 gradients and the same path. *)
Theorem bridge_rounding t : (t <= steps)%nat ->
  Rabs (settled_weight t - eager t) <= bridge_rounding_bound steps (touches steps) largest_weight largest_increment.
Proof. intro Ht. exact (proj2 (proj2 (proj2 (settled_within t Ht (lazy_rounding t Ht))))). Qed.
End Bridge.

(** ** 4. The same about binary32 values, with infinities and NaN *)

Notation finite := (is_finite 24 128).
Notation real := (B2R 24 128).
Definition minus32 : binary32 -> binary32 -> binary32 := b32_minus BinarySingleNaN.mode_NE.

(** fl32(units * 2^exponent): an integer of the path as a float32. *)
Definition float_of_units (units exponent : Z) : binary32 :=
  binary_normalize 24 128 eq_refl eq_refl BinarySingleNaN.mode_NE units exponent false.

Lemma minus32_finite x y : finite (minus32 x y) = true ->
  finite x = true /\ finite y = true /\ real (minus32 x y) = fl (real x - real y).
Proof.
  intro F. assert (Fxy : finite x = true /\ finite y = true).
  { unfold minus32, b32_minus, Bminus in F. rewrite is_finite_BSN2B in F.
    destruct x as [|s| |], y as [|s'| |]; try (split; reflexivity); exfalso; revert F; cbn; try discriminate.
    all: destruct s; try destruct s'; cbn; discriminate. }
  destruct Fxy as [Fx Fy]. split; [exact Fx|]. split; [exact Fy|].
  unfold minus32, b32_minus in *.
  generalize (Bminus_correct 24 128 eq_refl eq_refl binop_nan_pl32 BinarySingleNaN.mode_NE x y Fx Fy).
  destruct (Rlt_bool _ _); [intros [E _]; exact E|]. intros [E _]. exfalso.
  apply (f_equal is_finite_FF) in E. rewrite is_finite_B2FF in E. rewrite E in F. discriminate.
Qed.

Lemma float_of_units_finite units exponent : finite (float_of_units units exponent) = true ->
  real (float_of_units units exponent) = fl (IZR units * bpow radix2 exponent).
Proof.
  intro F. unfold float_of_units in *.
  generalize (binary_normalize_correct 24 128 eq_refl eq_refl BinarySingleNaN.mode_NE units exponent false).
  destruct (Rlt_bool _ _); [intros [E _]; exact E|]. intro E. exfalso.
  apply (f_equal is_finite_FF) in E. rewrite is_finite_B2FF, F in E. discriminate.
Qed.

Section Bridge32.
Variable initial : binary32.
(** As [use] above, with binary32 gradients. *)
Variable uses : nat -> option (option binary32).
(** The path of one coordinate in whole units of 2^exponent: P(t) of docs/arithmetic.md. In the reference it is
    [owed 0 t] of BridgeTree.v, and a payment is [owed since until] = P(until) - P(since), by
    [span_is_path_difference] there. *)
Variable path : nat -> Z.
Variable exponent : Z.

Definition after_gradient32 (w : binary32) (u : option (option binary32)) : binary32 :=
  match u with Some (Some g) => minus32 w g | _ => w end.

Fixpoint eager32 (t : nat) : binary32 :=
  match t with
  | O => initial
  | S t => minus32 (after_gradient32 (eager32 t) (uses t)) (float_of_units (path (S t) - path t) exponent)
  end.

Definition settle32 (row : binary32 * nat) (until : nat) : binary32 * nat :=
  let '(w, since) := row in
  if (since <? until)%nat then (minus32 w (float_of_units (path until - path since) exponent), until) else row.

Fixpoint lazy32 (t : nat) : binary32 * nat :=
  match t with
  | O => (initial, O)
  | S t => match uses t with
           | None => lazy32 t
           | u => let '(w, since) := settle32 (lazy32 t) t in (after_gradient32 w u, since)
           end
  end.

Definition settled_weight32 (t : nat) : binary32 := fst (settle32 (lazy32 t) t).

(** The same run in real numbers. *)
Let uses_real (t : nat) : use :=
  match uses t with None => Unread | Some None => Settled | Some (Some g) => Touched (real g) end.
Let path_real (t : nat) : R := IZR (path t) * bpow radix2 exponent.

Lemma span_real a b : IZR (path b - path a) * bpow radix2 exponent = path_real b - path_real a.
Proof. unfold path_real. rewrite minus_IZR. ring. Qed.

(** Infinity and NaN never turn back into a number: if the weight is finite at last, it was so all the time. *)
Lemma after_gradient_finite w t : finite (after_gradient32 w (uses t)) = true ->
  finite w = true /\ real (after_gradient32 w (uses t)) = after_gradient (real w) (uses_real t).
Proof.
  unfold uses_real. destruct (uses t) as [[g|]|]; cbn [after_gradient32 after_gradient]; auto.
  intro F. apply minus32_finite in F as (Fw & _ & E). now split.
Qed.

Lemma eager_finite t : finite (eager32 (S t)) = true ->
  finite (eager32 t) = true
  /\ real (after_gradient32 (eager32 t) (uses t)) = after_gradient (real (eager32 t)) (uses_real t)
  /\ real (eager32 (S t)) = fl (after_gradient (real (eager32 t)) (uses_real t) - fl (path_real (S t) - path_real t)).
Proof.
  intro F. cbn [eager32] in F. apply minus32_finite in F as (Fw & Fp & E).
  apply float_of_units_finite in Fp. rewrite span_real in Fp. rewrite Fp in E.
  apply after_gradient_finite in Fw as [Fw Eg]. rewrite Eg in E. auto.
Qed.

Lemma eager_real : forall t, finite (eager32 t) = true -> real (eager32 t) = eager (real initial) uses_real path_real t.
Proof.
  induction t as [|t IH]; intro F; [reflexivity|]. apply eager_finite in F as (F & _ & E). rewrite E, (IH F).
  reflexivity.
Qed.

Lemma eager_finite_before s t : (s <= t)%nat -> finite (eager32 t) = true -> finite (eager32 s) = true.
Proof. induction 1 as [|t H IH]; intro F; [exact F|]. apply IH. now apply eager_finite in F. Qed.

Lemma settle_real row w since until : finite (fst (settle32 row until)) = true -> row = (w, since) ->
  finite w = true
  /\ real (fst (settle32 row until)) = fst (settle path_real (real w, since) until)
  /\ snd (settle32 row until) = snd (settle path_real (real w, since) until).
Proof.
  intros F ->. cbn [settle32 settle] in *. destruct (since <? until)%nat; cbn [fst snd] in *; [|auto].
  apply minus32_finite in F as (Fw & Fp & E). apply float_of_units_finite in Fp. rewrite span_real in Fp.
  rewrite Fp in E. auto.
Qed.

Lemma lazy_real : forall t, finite (fst (lazy32 t)) = true ->
  (real (fst (lazy32 t)), snd (lazy32 t)) = lazy (real initial) uses_real path_real t.
Proof.
  induction t as [|t IH]; intro F; [reflexivity|]. cbn [lazy32 lazy] in *. unfold uses_real at 1.
  assert (Main : forall u, uses t = Some u ->
    finite (fst (let '(w, since) := settle32 (lazy32 t) t in (after_gradient32 w (Some u), since))) = true ->
    (real (fst (let '(w, since) := settle32 (lazy32 t) t in (after_gradient32 w (Some u), since))),
     snd (let '(w, since) := settle32 (lazy32 t) t in (after_gradient32 w (Some u), since)))
    = (let '(w, since) := settle path_real (lazy (real initial) uses_real path_real t) t in
       (after_gradient w (uses_real t), since))).
  { intros u Eu. destruct (lazy32 t) as [w since] eqn:El. assert (S := settle_real (w, since) w since t).
    destruct (settle32 (w, since) t) as [w' since']. cbn [fst snd] in *. intro F'.
    rewrite <- Eu in F'. destruct (after_gradient_finite w' t F') as [Fw' E'].
    destruct (S Fw' eq_refl) as (Fw & Er & Es). rewrite <- Eu. rewrite E'. specialize (IH Fw).
    rewrite <- IH. destruct (settle path_real (real w, since) t) as [v p]. cbn [fst snd] in *. now subst. }
  destruct (uses t) as [u|] eqn:Eu; [|now apply IH].
  specialize (Main u eq_refl F). rewrite Main. unfold uses_real. rewrite Eu. now destruct u.
Qed.

Lemma settled_weight_real t : finite (settled_weight32 t) = true ->
  real (settled_weight32 t) = settled_weight (real initial) uses_real path_real t.
Proof.
  intro F. unfold settled_weight32, settled_weight in *. destruct (lazy32 t) as [w since] eqn:El.
  destruct (settle_real (w, since) w since t F eq_refl) as (Fw & E & _). rewrite E.
  assert (L := lazy_real t). rewrite El in L. cbn [fst snd] in L. now rewrite <- (L Fw).
Qed.

(** Steps before t that used the row: K of the bound. *)
Fixpoint touches32 (t : nat) : nat :=
  match t with O => O | S t => match uses t with None => touches32 t | _ => S (touches32 t) end end.

Lemma touches_real t : touches uses_real t = touches32 t.
Proof.
  induction t as [|t IH]; cbn; [reflexivity|]. unfold uses_real at 1. destruct (uses t) as [[g|]|]; now rewrite IH.
Qed.

(** Claim E2 for the numbers that a machine holds: if the eager weight at the end and the lazy weight at step t are
    finite, then

        |lazy32(t) - eager32(t)| <= (u ((T + 3K + 1) W + 2 T N) + (2T + 2) 2^-150) / (1 - u (2K + 1)),  u = 2^-24,

    for every read (t < T) and at release (t = T), where W bounds the eager weights after any subtraction, N the path's
    increments of one step, and K counts the steps that used the row. Overflow shows as a weight that is not finite. *)
Theorem bridge_rounding_binary32 steps t largest_weight largest_increment :
  (t <= steps)%nat -> finite (eager32 steps) = true -> finite (settled_weight32 t) = true ->
  0 <= largest_weight ->
  (forall s, (s < steps)%nat -> Rabs (real (after_gradient32 (eager32 s) (uses s))) <= largest_weight
                             /\ Rabs (real (eager32 (S s))) <= largest_weight) ->
  (forall s, (s < steps)%nat -> Rabs (IZR (path (S s) - path s) * bpow radix2 exponent) <= largest_increment) ->
  unit_roundoff * (2 * INR (touches32 steps) + 1) < 1 ->
  Rabs (real (settled_weight32 t) - real (eager32 t))
  <= bridge_rounding_bound steps (touches32 steps) largest_weight largest_increment.
Proof.
  intros Ht Fe Fl HW Hw Hn Hd. assert (Fbefore := fun s H => eager_finite_before s steps H Fe).
  rewrite (settled_weight_real t Fl), (eager_real t (Fbefore t Ht)). rewrite <- touches_real in *.
  apply bridge_rounding; auto.
  - apply (generic_format_B2R 24 128).
  - intros s g _ E. unfold uses_real in E. destruct (uses s) as [[g'|]|]; inversion E.
    apply (generic_format_B2R 24 128).
  - intros s Hs. destruct (Hw s Hs) as [Hg He]. assert (F := Fbefore (S s) Hs). rewrite <- (eager_real (S s) F).
    split; [|exact He]. destruct (eager_finite s F) as (F' & Eg & _). now rewrite <- (eager_real s F'), <- Eg.
  - intros s Hs. rewrite <- span_real. now apply Hn.
Qed.
End Bridge32.
