(** What every claimed theorem says, in full: hypotheses, quantifiers and all.

    This file is kept by hand, and nothing writes it. A theorem that comes to say something else, or a definition that
    it speaks of, makes the check fail until this file is edited, so no statement gets weaker without a change to it.
    No theory is imported here: names are given in full, and no notation of a theory is in force.

    The digests are of all that each theory states outside its opaque proofs, apart from its lemmas and theorems:
    definitions, notations, sections and their variables. The theories Gen_*.v are what the sources translate to, and
    are not among them. *)
Set Warnings "-ambiguous-paths".
From Coq Require Import List Arith ZArith Reals Permutation.
From Flocq Require Import Core Binary Bits.
From Coquelicot Require Import Coquelicot.
Import ListNotations.
From samelaw Require Monads Gen_schedule Gen_truncation Schedule Replay BridgeTree FloatBounds FiniteLaws Aggregate
  GaussianCoupling GaussianDensity Momentum Sensitivity Release.
#[local] Existing Instances Monads.Identity FiniteLaws.FiniteLaw.
Open Scope R_scope.

(* definitions of Aggregate: 51be4be81ea248d380ee241350e9bb9b9c05cd4ff8c398d9ea817b0354040212 *)
(* definitions of BridgeTree: 16bacdac8c219122799eee0779ac6a897a8b838ace0dd9dfd6be0d9b5de6aee2 *)
(* definitions of FiniteLaws: 0501a86c4d960058dae114a0413eaf784dc6c873be80ada68294d401d0c8e0a0 *)
(* definitions of Float64: ccafb38464c2e843b18bfbc9094881bb3b76e375bf21d4ace8eaed98ce316e1f *)
(* definitions of FloatBounds: 75ea9193252080f2fd01b84cc6dd99e251ab7e349da64f795a0284bd0933b416 *)
(* definitions of GaussianCoupling: f55a6431c99cd5576821151cae1d687520e103b9f1ef9e222d8fb92e805b2d59 *)
(* definitions of GaussianDensity: 665a19ea93283b160cecb2728a4fed00649c99a56a66e1c94579d892192a3542 *)
(* definitions of Momentum: e7f8de2dbef478f99a9d6c238b5558a997628cae700c4bec27db78a5d1f51979 *)
(* definitions of Monads: 7bdd68695846ca9a2f759d9a213b9d954d27e019fd57cf75b3cfab4199717e88 *)
(* definitions of Release: 26a05d735a4da535428d6b17b579f89cb47fef30be0d0ecd9a80575026b0ed61 *)
(* definitions of Replay: dc95da31619fee2edd93bfe328806a01b45693887054362aa38aba1b8725eaff *)
(* definitions of Schedule: 668fff03e61a7cfcd78556a912df7c5876b3ac385bd4e91d4694196e49bec17b *)
(* definitions of Sensitivity: 4c9fd35af55b65361efa4f1b52f3b171d5e0be1f3544e0802ee36ffb1908035d *)

Definition Schedule__lazy_is_eager :
  forall (M : Set -> Type) (CM : Monads.CommMonad M) (Val Grad Side : Set)
    (owe : nat -> nat -> nat -> Val -> M Val),
  (forall (r t : nat) (w : Val), Monads.meq (owe r t t w) (Monads.ret w)) ->
  (forall (r a t : nat) (w : Val),
   (a <= t)%nat -> Monads.meq (Monads.bind (owe r a t w) (owe r t (S t))) (owe r a (S t) w)) ->
  forall owed : list nat -> list nat -> nat -> list Val -> M (list Val),
  (forall (rs : list nat) (since : nat -> nat) (until : nat) (table : Monads.Table Val),
   NoDup rs ->
   Monads.meq (owed rs (map since rs) until (map table rs))
     (Monads.mapM (fun r : nat => owe r (since r) until (table r)) rs)) ->
  forall rows : list nat,
  NoDup rows ->
  forall (plan : nat -> Side -> M (Monads.Program Val (list nat * Grad * Side)))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list Val -> list Val),
  (forall (t : nat) (side : Side),
   exists q : M {p : Monads.Program Val (list nat * Grad * Side) | Schedule.within rows p},
     Monads.meq (plan t side)
       (Monads.bind q
          (fun p : {p : Monads.Program Val (list nat * Grad * Side) | Schedule.within rows p} =>
           Monads.ret (proj1_sig p)))) ->
  (forall (t : nat) (side : Side), incl (look_ahead t side) rows) ->
  forall (steps : nat) (W : Monads.Table Val) (side : Side),
  Monads.meq (Gen_schedule.eager_run W side 0 steps rows plan update owed)
    (Monads.bind (Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update owed)
       (fun '(L, H, side') =>
        Monads.bind (Gen_schedule.release L H steps rows owed) (fun '(W', _) => Monads.ret (W', side'))))
  := @samelaw.Schedule.lazy_is_eager.

Definition Replay__replay_same_bits :
  forall (Val Grad Side : Set) (noise : nat -> nat -> Val -> Val) (rows : list nat)
    (plan : nat -> Side -> Monads.Program Val (list nat * Grad * Side)) (look_ahead : nat -> Side -> list nat)
    (update : nat -> list nat -> Grad -> list Val -> list Val),
  NoDup rows ->
  (forall (t : nat) (side : Side), Schedule.within rows (plan t side)) ->
  (forall (t : nat) (side : Side), incl (look_ahead t side) rows) ->
  forall (steps : nat) (W : Monads.Table Val) (side : Side),
  Gen_schedule.eager_run W side 0 steps rows plan update (FiniteLaws.by_row (Replay.replay noise)) =
  (let '(L, H, side') :=
    Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
      (FiniteLaws.by_row (Replay.replay noise)) in
    let '(W', _) := Gen_schedule.release L H steps rows (FiniteLaws.by_row (Replay.replay noise)) in (W', side'))
  := @samelaw.Replay.replay_same_bits.

Definition Replay__pay_steps_replays :
  forall (Val : Set) (noise : nat -> nat -> Val -> Val) (pay : list nat -> nat -> nat -> list Val -> list Val)
    (rows : list nat) (since until : nat) (table : Monads.Table Val),
  (forall (step : nat) (table0 : Monads.Table Val),
   pay rows step (step + 1)%nat (map table0 rows) = map (fun r : nat => noise r step (table0 r)) rows) ->
  Gen_schedule.pay_steps rows since until (map table rows) pay =
  map (fun r : nat => Replay.replay noise r since until (table r)) rows
  := @samelaw.Replay.pay_steps_replays.

Definition BridgeTree__spans_add :
  forall (steps : nat) (clock : nat -> Z) (split : nat -> nat -> nat -> Z -> Z) (total : Z) (a b c : nat),
  (1 <= steps)%nat ->
  (a <= b <= c)%nat ->
  (c <= steps)%nat ->
  (BridgeTree.owed steps clock split total a b + BridgeTree.owed steps clock split total b c)%Z =
  BridgeTree.owed steps clock split total a c
  := @samelaw.BridgeTree.spans_add.

Definition BridgeTree__span_is_sum_of_few_nodes :
  forall (steps : nat) (clock : nat -> Z) (split : nat -> nat -> nat -> Z -> Z) (total : Z)
    (since until : nat),
  BridgeTree.owed steps clock split total since until =
  fold_right (fun '(_, _, held) (sum : Z) => (held + sum)%Z) 0%Z
    (BridgeTree.nodes steps clock split (BridgeTree.levels steps) 0 total since until) /\
  (length (BridgeTree.nodes steps clock split (BridgeTree.levels steps) 0 total since until) <=
   Nat.max 1 (2 * (Nat.log2_up steps - 1)))%nat
  := @samelaw.BridgeTree.span_is_sum_of_few_nodes.

Definition FloatBounds__bridge_rounding_binary32 :
  forall (initial : binary32) (uses : nat -> option (option binary32)) (path : nat -> Z)
    (exponent : Z) (steps t : nat) (largest_weight largest_increment : R),
  (t <= steps)%nat ->
  Binary.is_finite 24 128 (FloatBounds.eager32 initial uses path exponent steps) = true ->
  Binary.is_finite 24 128 (FloatBounds.settled_weight32 initial uses path exponent t) = true ->
  0 <= largest_weight ->
  (forall s : nat,
   (s < steps)%nat ->
   Rabs
     (B2R 24 128 (FloatBounds.after_gradient32 (FloatBounds.eager32 initial uses path exponent s) (uses s))) <=
   largest_weight /\
   Rabs (B2R 24 128 (FloatBounds.eager32 initial uses path exponent (S s))) <= largest_weight) ->
  (forall s : nat,
   (s < steps)%nat -> Rabs (IZR (path (S s) - path s) * bpow radix2 exponent) <= largest_increment) ->
  FloatBounds.unit_roundoff * (2 * INR (FloatBounds.touches32 uses steps) + 1) < 1 ->
  Rabs
    (B2R 24 128 (FloatBounds.settled_weight32 initial uses path exponent t) -
     B2R 24 128 (FloatBounds.eager32 initial uses path exponent t)) <=
  FloatBounds.bridge_rounding_bound steps (FloatBounds.touches32 uses steps) largest_weight largest_increment
  := @samelaw.FloatBounds.bridge_rounding_binary32.

Definition FloatBounds__replay_error :
  forall (largest : R) (payments : list R) (w : R),
  generic_format radix2 FloatBounds.fexp32 w ->
  FloatBounds.stays_within largest w payments ->
  generic_format radix2 FloatBounds.fexp32 (FloatBounds.replayed w payments) /\
  Rabs (FloatBounds.replayed w payments - (w - FloatBounds.total payments)) <=
  FloatBounds.unit_roundoff * (INR (length payments) * largest + FloatBounds.magnitude payments) +
  INR (length payments) * FloatBounds.underflow
  := @samelaw.FloatBounds.replay_error.

Definition FiniteLaws__finite_laws_agree :
  forall mu : nat -> FiniteLaws.Law Z,
  FiniteLaws.semigroup mu ->
  forall clock : nat -> nat,
  (forall t : nat, (clock t <= clock (S t))%nat) ->
  forall (Grad Side : Set) (rows : list nat)
    (plan : nat -> Side -> FiniteLaws.Law (Monads.Program Z (list nat * Grad * Side)))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list Z -> list Z)
    (steps : nat) (W : Monads.Table Z) (side : Side),
  NoDup rows ->
  (forall (t : nat) (s : Side),
   exists q : FiniteLaws.Law {p : Monads.Program Z (list nat * Grad * Side) | Schedule.within rows p},
     Monads.meq (plan t s)
       (Monads.bind q
          (fun p : {p : Monads.Program Z (list nat * Grad * Side) | Schedule.within rows p} =>
           Monads.ret (proj1_sig p)))) ->
  (forall (t : nat) (s : Side), incl (look_ahead t s) rows) ->
  Monads.meq
    (Gen_schedule.eager_run W side 0 steps rows plan update
       (FiniteLaws.by_row (FiniteLaws.aggregate mu clock)))
    (Monads.bind
       (Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
          (FiniteLaws.by_row (FiniteLaws.aggregate mu clock)))
       (fun '(L, H, side') =>
        Monads.bind (Gen_schedule.release L H steps rows (FiniteLaws.by_row (FiniteLaws.aggregate mu clock)))
          (fun '(W', _) => Monads.ret (W', side'))))
  := @samelaw.FiniteLaws.finite_laws_agree.

Definition Aggregate__aggregate_is_eager :
  forall (M : Set -> Type) (CM : Monads.CommMonad M) (gauss : R -> R -> M R),
  (forall m : R, Monads.meq (gauss m 0) (Monads.ret m)) ->
  (forall a m v v' : R,
   0 <= v ->
   0 <= v' ->
   Monads.meq (Monads.bind (gauss m v) (fun x : R => gauss (a * x) v')) (gauss (a * m) (a * a * v + v'))) ->
  forall rate variance : nat -> R,
  (forall t : nat, 0 <= variance t) ->
  forall (decay : R) (Grad Side : Set) (rows : list nat)
    (plan : nat -> Side -> M (Monads.Program R (list nat * Grad * Side)))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list R -> list R)
    (steps : nat) (W : Monads.Table R) (side : Side),
  NoDup rows ->
  (forall (t : nat) (s : Side),
   exists q : M {p : Monads.Program R (list nat * Grad * Side) | Schedule.within rows p},
     Monads.meq (plan t s)
       (Monads.bind q
          (fun p : {p : Monads.Program R (list nat * Grad * Side) | Schedule.within rows p} =>
           Monads.ret (proj1_sig p)))) ->
  (forall (t : nat) (s : Side), incl (look_ahead t s) rows) ->
  Monads.meq
    (Gen_schedule.eager_run W side 0 steps rows plan update
       (FiniteLaws.by_row (Aggregate.aggregate gauss rate variance decay)))
    (Monads.bind
       (Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
          (FiniteLaws.by_row (Aggregate.aggregate gauss rate variance decay)))
       (fun '(L, H, side') =>
        Monads.bind
          (Gen_schedule.release L H steps rows
             (FiniteLaws.by_row (Aggregate.aggregate gauss rate variance decay)))
          (fun '(W', _) => Monads.ret (W', side'))))
  := @samelaw.Aggregate.aggregate_is_eager.

Definition GaussianCoupling__pathwise :
  forall (rate : nat -> R) (Grad Side : Set) (plan : nat -> Side -> Monads.Program R (list nat * Grad * Side))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list R -> list R)
    (z : nat -> nat -> R) (rows : list nat) (steps : nat) (W : Monads.Table R) (side : Side),
  NoDup rows ->
  (forall (t : nat) (s : Side), Schedule.within rows (plan t s)) ->
  (forall (t : nat) (s : Side), incl (look_ahead t s) rows) ->
  Gen_schedule.eager_run W side 0 steps rows plan update
    (FiniteLaws.by_row (GaussianCoupling.owe_block rate z)) =
  (let '(L, H, side') :=
    Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
      (FiniteLaws.by_row (GaussianCoupling.owe_block rate z)) in
    let '(W', _) := Gen_schedule.release L H steps rows (FiniteLaws.by_row (GaussianCoupling.owe_block rate z)) in
     (W', side'))
  := @samelaw.GaussianCoupling.pathwise.

Definition GaussianCoupling__blocks_are_independent :
  forall (rate variance : nat -> R) (b : nat) (spans : list (nat * nat)) (a : nat) (us : list R),
  GaussianCoupling.chain a b spans ->
  GaussianCoupling.block (fun s : nat => variance s * GaussianCoupling.combined rate us spans s ^ 2) a (b - a) =
  GaussianCoupling.separate rate variance us spans
  := @samelaw.GaussianCoupling.blocks_are_independent.

Definition GaussianDensity__density_affine :
  forall a m v v' z : R,
  0 < v ->
  0 < v' ->
  is_RInt_gen (fun x : R => GaussianDensity.density v (x - m) * GaussianDensity.density v' (z - a * x))
    (Rbar_locally m_infty) (Rbar_locally p_infty) (GaussianDensity.density (a * a * v + v') (z - a * m))
  := @samelaw.GaussianDensity.density_affine.

Definition Momentum__momentum_is_eager :
  forall rate variance : nat -> R,
  (forall t : nat, 0 <= variance t) ->
  forall (momentum decay : R) (M : Set -> Type) (CM : Monads.CommMonad M)
    (gauss : Momentum.Vector -> Momentum.Matrix -> M Momentum.Vector),
  (forall m : Momentum.Vector, Monads.meq (gauss m Momentum.zero) (Monads.ret m)) ->
  (forall (a : Momentum.Matrix) (m : Momentum.Vector) (c q : Momentum.Matrix),
   Momentum.covariance c ->
   Momentum.covariance q ->
   Monads.meq (Monads.bind (gauss m c) (fun x : Momentum.Vector => gauss (Momentum.apply_to a x) q))
     (gauss (Momentum.apply_to a m) (Momentum.pushed a c q))) ->
  forall (Grad Side : Set) (rows : list nat)
    (plan : nat -> Side -> M (Monads.Program Momentum.Vector (list nat * Grad * Side)))
    (look_ahead : nat -> Side -> list nat)
    (update : nat -> list nat -> Grad -> list Momentum.Vector -> list Momentum.Vector)
    (steps : nat) (W : Monads.Table Momentum.Vector) (side : Side),
  NoDup rows ->
  (forall (t : nat) (s : Side),
   exists q : M {p : Monads.Program Momentum.Vector (list nat * Grad * Side) | Schedule.within rows p},
     Monads.meq (plan t s)
       (Monads.bind q
          (fun p : {p : Monads.Program Momentum.Vector (list nat * Grad * Side) | Schedule.within rows p} =>
           Monads.ret (proj1_sig p)))) ->
  (forall (t : nat) (s : Side), incl (look_ahead t s) rows) ->
  Monads.meq
    (Gen_schedule.eager_run W side 0 steps rows plan update
       (FiniteLaws.by_row (Momentum.aggregate rate variance momentum decay gauss)))
    (Monads.bind
       (Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
          (FiniteLaws.by_row (Momentum.aggregate rate variance momentum decay gauss)))
       (fun '(L, H, side') =>
        Monads.bind
          (Gen_schedule.release L H steps rows
             (FiniteLaws.by_row (Momentum.aggregate rate variance momentum decay gauss)))
          (fun '(W', _) => Monads.ret (W', side'))))
  := @samelaw.Momentum.momentum_is_eager.

Definition Sensitivity__truncation_shrinks :
  forall z : R, Rabs (IZR (Ztrunc z)) <= Rabs z
  := @samelaw.Sensitivity.truncation_shrinks.

Definition Sensitivity__contribution_within_clip_norm :
  forall square_norm clip_norm : R,
  / 2 ^ 400 <= clip_norm <= 2 ^ 400 ->
  0 <= square_norm <= 2 ^ 1024 ->
  forall (gradients : list (list R)) (unit : R),
  0 < unit ->
  Sensitivity.square_sum (concat gradients) <= Rsqr (1 + / 2 ^ 21) * square_norm ->
  Sensitivity.square_length
    (Sensitivity.example_contributions gradients (Gen_truncation.clip_factor square_norm clip_norm / unit)) <=
  Rsqr (clip_norm / unit)
  := @samelaw.Sensitivity.contribution_within_clip_norm.

Definition Sensitivity__one_example_moves_the_sums_by_at_most_the_clip_norm :
  forall (square_norm clip_norm unit : R) (places : list Sensitivity.place),
  / 2 ^ 400 <= clip_norm <= 2 ^ 400 ->
  0 <= square_norm <= 2 ^ 1024 ->
  0 < unit ->
  (forall p : Sensitivity.place, In p places -> Sensitivity.well_shaped p) ->
  Sensitivity.square_sum (concat (map Sensitivity.gradient places)) <= Rsqr (1 + / 2 ^ 21) * square_norm ->
  Sensitivity.square_length
    (concat (map (Sensitivity.moved (Gen_truncation.clip_factor square_norm clip_norm / unit)) places)) <=
  Rsqr (clip_norm / unit)
  := @samelaw.Sensitivity.one_example_moves_the_sums_by_at_most_the_clip_norm.

Definition Sensitivity__batch_sum_order :
  forall (parts parts' : list (list Z)) (zero : list Z),
  Permutation parts parts' -> Gen_truncation.batch_sum parts zero = Gen_truncation.batch_sum parts' zero
  := @samelaw.Sensitivity.batch_sum_order.

Definition Release__release_leaves_no_debt :
  forall (M : Set -> Type) (CM : Monads.CommMonad M) (Val : Set)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val)) (B : Set) (L : Monads.Table Val)
    (H : Monads.History) (t : nat) (rows : list nat) (F G : Monads.Table Val * Monads.History -> M B),
  (forall (L' : Monads.Table Val) (H' : nat -> nat),
   (forall r : nat, In r rows -> H' r = t) -> Monads.meq (F (L', H')) (G (L', H'))) ->
  Monads.meq (Monads.bind (Gen_schedule.release L H t rows owed) F)
    (Monads.bind (Gen_schedule.release L H t rows owed) G)
  := @samelaw.Release.release_leaves_no_debt.

Definition GaussianCoupling__spans_form_a_chain :
  forall (Val Grad Side : Set) (owe : nat -> nat -> nat -> Val -> Val)
    (plan : nat -> Side -> Monads.Program Val (list nat * Grad * Side)) (look_ahead : nat -> Side -> list nat)
    (update : nat -> list nat -> Grad -> list Val -> list Val) (rows : list nat) (W : nat -> Val)
    (side : Side) (steps : nat),
  let '(L, H, _) :=
   Gen_schedule.lazy_run (fun r : nat => (W r, [])) (fun _ : nat => 0%nat) side 0 steps
     (GaussianCoupling.plan_logged plan) look_ahead (GaussianCoupling.update_logged update)
     (FiniteLaws.by_row (GaussianCoupling.owe_logged owe)) in
   let '(L', _) := Gen_schedule.release L H steps rows (FiniteLaws.by_row (GaussianCoupling.owe_logged owe)) in
    forall r : nat, In r rows -> GaussianCoupling.chain 0 steps (snd (L' r))
  := @samelaw.GaussianCoupling.spans_form_a_chain.

Definition Release__resumed_run_is_uninterrupted :
  forall (M : Set -> Type) (CM : Monads.CommMonad M) (Val Grad Side : Set)
    (owed : list nat -> list nat -> nat -> list Val -> M (list Val))
    (plan : nat -> Side -> M (Monads.Program Val (list nat * Grad * Side)))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list Val -> list Val)
    (L : Monads.Table Val) (H : Monads.History) (side : Side) (first pause last : nat),
  (first <= pause <= last)%nat ->
  Monads.meq (Gen_schedule.lazy_run L H side first last plan look_ahead update owed)
    (Monads.bind (Gen_schedule.lazy_run L H side first pause plan look_ahead update owed)
       (fun '(L', H', side') => Gen_schedule.lazy_run L' H' side' pause last plan look_ahead update owed))
  := @samelaw.Release.resumed_run_is_uninterrupted.

Definition FiniteLaws__binomial_semigroup :
  FiniteLaws.semigroup FiniteLaws.binomial
  := @samelaw.FiniteLaws.binomial_semigroup.

Definition Aggregate__variance_is_sum :
  forall (rate variance : nat -> R) (lo n : nat),
  Aggregate.summed_variance rate variance 0 lo n =
  fold_right Rplus 0 (map (fun t : nat => rate t ^ 2 * variance t) (seq lo n))
  := @samelaw.Aggregate.variance_is_sum.

Definition Aggregate__variance_with_decay :
  forall (rate variance : nat -> R) (decay : R) (lo n : nat),
  Aggregate.summed_variance rate variance decay lo n =
  fold_right Rplus 0 (map (Aggregate.left_of_step rate variance decay lo n) (seq 0 n))
  := @samelaw.Aggregate.variance_with_decay.

Definition GaussianCoupling__owed_noise_is_unused :
  forall (rate : nat -> R) (Grad Side : Set) (plan : nat -> Side -> Monads.Program R (list nat * Grad * Side))
    (look_ahead : nat -> Side -> list nat) (update : nat -> list nat -> Grad -> list R -> list R)
    (z z' : nat -> nat -> R) (steps : nat) (W : Monads.Table R) (side : Side),
  let run :=
    fun z0 : nat -> nat -> R =>
    Gen_schedule.lazy_run W (fun _ : nat => 0%nat) side 0 steps plan look_ahead update
      (FiniteLaws.by_row (GaussianCoupling.owe_block rate z0)) in
  (forall r s : nat, (s < snd (fst (run z)) r)%nat -> z r s = z' r s) -> run z' = run z
  := @samelaw.GaussianCoupling.owed_noise_is_unused.

Definition Momentum__pending_covariance_adds :
  forall (rate variance : nat -> R) (momentum decay : R) (lo j k : nat),
  Momentum.pending_covariance rate variance momentum decay lo (j + k) =
  Momentum.pushed (Momentum.pending_map rate momentum decay (lo + j) k)
    (Momentum.pending_covariance rate variance momentum decay lo j)
    (Momentum.pending_covariance rate variance momentum decay (lo + j) k)
  := @samelaw.Momentum.pending_covariance_adds.

Definition FloatBounds__aggregate_error :
  forall w scale exact_scale z gap : R,
  generic_format radix2 FloatBounds.fexp32 w ->
  Rabs (scale - exact_scale) <= gap ->
  Rabs
    (round radix2 FloatBounds.fexp32 ZnearestE (w - round radix2 FloatBounds.fexp32 ZnearestE (scale * z)) -
     (w - exact_scale * z)) <=
  FloatBounds.unit_roundoff *
  (Rabs
     (round radix2 FloatBounds.fexp32 ZnearestE (w - round radix2 FloatBounds.fexp32 ZnearestE (scale * z))) +
   Rabs (scale * z)) + FloatBounds.underflow + gap * Rabs z
  := @samelaw.FloatBounds.aggregate_error.

Definition GaussianDensity__density_of_a_split :
  forall a b x y : R,
  0 < a ->
  0 < b ->
  GaussianDensity.density (a + b) (x + y) *
  GaussianDensity.density (a * b / (a + b)) (x - (x + y) * (a / (a + b))) =
  GaussianDensity.density a x * GaussianDensity.density b y
  := @samelaw.GaussianDensity.density_of_a_split.

Definition Sensitivity__batch_sum_fits_int64 :
  forall (parts : list (list Z)) (n : nat),
  (Z.of_nat (length parts) < 2 ^ 31)%Z ->
  (forall p : list Z, In p parts -> Sensitivity.square_length p <= Rsqr (IZR (2 ^ 32))) ->
  List.Forall (fun x : Z => (- 2 ^ 63 < x < 2 ^ 63)%Z) (Gen_truncation.batch_sum parts (repeat 0%Z n))
  := @samelaw.Sensitivity.batch_sum_fits_int64.
