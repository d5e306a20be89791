(** Sensitivity: no example moves the sum of a batch by more than the clip norm.

    About clip_factor, contribution and batch_sum of reference/truncation.py, through their generated definitions: the
    factor and the product with it are rounded float64 operations; truncation and sums are exact integers. What is taken
    from elsewhere is a hypothesis here: that [square_norm], as the trainer computes it, is at least the example's true
    squared norm up to a relative 2^-20 (claim S2, docs/arithmetic.md), and that 2^400 and 2^-400 bound the clip norm and
    2^1024 the squared norm, so that nothing under- or overflows. *)
Require Import Reals ZArith List Lia Lra Permutation.
From Flocq Require Import Core.
Import ListNotations.
From samelaw Require Import Float64 Gen_truncation.
Open Scope R_scope.

(** * Sums of squares *)

Fixpoint square_sum (v : list R) : R := match v with [] => 0 | x :: v => x * x + square_sum v end.

(** Squared length of an integer vector. *)
Definition square_length (v : list Z) : R := square_sum (map IZR v).

Lemma square_sum_nonneg v : 0 <= square_sum v.
Proof. induction v as [|x v IH]; cbn; [lra|]. assert (0 <= x * x) by apply Rle_0_sqr. lra. Qed.

Lemma square_sum_app v w : square_sum (v ++ w) = square_sum v + square_sum w.
Proof. induction v as [|x v IH]; cbn; [lra|]. rewrite IH. lra. Qed.

(** * Truncation toward zero *)

(** Theorem TRUNCATION. Truncation toward zero never makes a number larger in size. *)
Theorem truncation_shrinks z : Rabs (IZR (Ztrunc z)) <= Rabs z.
Proof.
  destruct (Rle_or_lt 0 z) as [H|H].
  - rewrite Ztrunc_floor, !Rabs_pos_eq; auto; [apply Zfloor_lb|]. apply IZR_le. apply Zfloor_lub. exact H.
  - rewrite Ztrunc_ceil by lra. rewrite !Rabs_left1 by (try lra; apply IZR_le; apply Zceil_glb; cbn; lra).
    assert (A := Zceil_ub z). lra.
Qed.

Lemma truncation_of_small z : Rabs z < 1 -> Ztrunc z = 0%Z.
Proof.
  intro H. assert (A := truncation_shrinks z). rewrite <- abs_IZR in A.
  assert (B : IZR (Z.abs (Ztrunc z)) < 1) by lra. apply lt_IZR in B. lia.
Qed.

Lemma u64_small : 0 < u64 <= / 2 ^ 53.
Proof. unfold u64. split; [apply Rinv_0_lt_compat, pow_lt; lra|lra]. Qed.

Lemma u64_value : u64 = / 9007199254740992.
Proof. unfold u64. f_equal. rewrite pow_IZR. reflexivity. Qed.

Lemma round64_half : round64 (/ 2) = / 2.
Proof.
  apply round_generic; [apply valid_rnd_N|]. replace (/ 2) with (bpow radix2 (-1)) by reflexivity.
  apply generic_format_bpow. unfold FLT_exp. cbn. lia.
Qed.

Lemma small_below_half x : x < / 2 ^ 1022 -> x <= / 2.
Proof.
  intro H. assert (/ 2 ^ 1022 <= / 2); [|lra]. apply Rinv_le_contravar; [lra|]. rewrite <- (pow_1 2) at 1.
  apply Rle_pow; [lra|lia].
Qed.

(** One coordinate: rounding of the product, then truncation. Where the product is so small that rounding is no longer
    relative, truncation gives zero. *)
Lemma coordinate x s : Rabs (IZR (Ztrunc (mul64 x s))) <= (1 + u64) * Rabs (x * s).
Proof.
  unfold mul64. assert (U := u64_small). destruct (Rle_or_lt (/ 2 ^ 1022) (Rabs (x * s))) as [H|H].
  - eapply Rle_trans; [apply truncation_shrinks|]. assert (E := round64_relative _ H).
    replace (round64 (x * s)) with ((round64 (x * s) - x * s) + x * s) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. lra.
  - apply small_below_half in H. rewrite truncation_of_small.
    + rewrite Rabs_R0. apply Rmult_le_pos; [lra|apply Rabs_pos].
    + apply Rabs_le_inv in H. apply Rle_lt_trans with (/ 2); [|lra]. apply Rabs_le. split.
      * rewrite <- round64_half, <- round64_opp. apply round64_le. lra.
      * rewrite <- round64_half. apply round64_le. lra.
Qed.

Lemma contribution_length g s : square_length (contribution g s) <= Rsqr ((1 + u64) * s) * square_sum g.
Proof.
  unfold square_length, contribution. induction g as [|x g IH]; cbn [map square_sum]; [lra|].
  assert (A := coordinate x s). assert (B : Rsqr (IZR (Ztrunc (mul64 x s))) <= Rsqr ((1 + u64) * (x * s))).
  { apply Rsqr_le_abs_1. eapply Rle_trans; [exact A|]. rewrite (Rabs_mult (1 + u64)). apply Rmult_le_compat_r; [apply Rabs_pos|apply Rle_abs]. }
  unfold Rsqr in *. lra.
Qed.

(** * The clip factor *)

Lemma mul_upper x y : / 2 ^ 1022 <= Rabs x -> x <= y -> 0 <= x -> round64 x <= y * (1 + u64).
Proof.
  intros H Hxy H0. assert (U := u64_small). assert (E := round64_relative x H). apply Rabs_le_inv in E.
  rewrite (Rabs_pos_eq x) in E by lra. assert (u64 * x <= u64 * y) by (apply Rmult_le_compat_l; lra). lra.
Qed.

Lemma mul_lower x : / 2 ^ 1022 <= x -> x * (1 - u64) <= round64 x.
Proof.
  intro H. assert (P : 0 < / 2 ^ 1022) by (apply Rinv_0_lt_compat, pow_lt; lra).
  assert (E := round64_relative x). rewrite Rabs_pos_eq in E by lra. specialize (E H). apply Rabs_le_inv in E. lra.
Qed.

Lemma power_order n m : (n <= m)%nat -> / 2 ^ m <= / 2 ^ n.
Proof. intro H. apply Rinv_le_contravar; [apply pow_lt; lra|]. apply Rle_pow; [lra|exact H]. Qed.

Section Factor.
Variables square_norm clip_norm : R.
Hypothesis clip_norm_range : / 2 ^ 400 <= clip_norm <= 2 ^ 400.
Hypothesis square_norm_range : 0 <= square_norm <= 2 ^ 1024.

Let norm := sqrt64 square_norm.
Let target := mul64 clip_norm (sub64 1 CLIP_MARGIN).

Lemma keep_bounds : 1 / 2 <= sub64 1 CLIP_MARGIN <= (1 - CLIP_MARGIN) * (1 + u64).
Proof.
  assert (V : CLIP_MARGIN = / 1048576) by (unfold CLIP_MARGIN; f_equal; rewrite pow_IZR; reflexivity).
  assert (W := power_order 1 1022 ltac:(lia)). rewrite pow_1 in W. unfold sub64. rewrite V. split.
  - replace (1 / 2) with (/ 2) by lra. rewrite <- round64_half. apply round64_le. lra.
  - apply mul_upper; [rewrite Rabs_pos_eq by lra; lra|lra|lra].
Qed.

Lemma clip_norm_positive : 0 < clip_norm.
Proof. assert (0 < / 2 ^ 400) by (apply Rinv_0_lt_compat, pow_lt; lra). lra. Qed.

Lemma target_bounds : / 2 ^ 402 <= target <= clip_norm * (1 - CLIP_MARGIN) * (1 + u64) * (1 + u64).
Proof.
  assert (K := keep_bounds). assert (C := clip_norm_positive). set (k := sub64 1 CLIP_MARGIN) in *.
  assert (P : / 2 ^ 401 <= clip_norm * k).
  { replace (/ 2 ^ 401) with (/ 2 ^ 400 * (1 / 2)).
    - apply Rmult_le_compat; lra.
    - change (2 ^ 401) with (2 * 2 ^ 400). rewrite Rinv_mult. lra. }
  assert (Q := power_order 401 1022 ltac:(lia)). assert (P0 : 0 < / 2 ^ 401) by (apply Rinv_0_lt_compat, pow_lt; lra).
  unfold target, mul64. fold k. split.
  - assert (L := mul_lower (clip_norm * k) ltac:(lra)). assert (U := u64_value).
    change (2 ^ 402) with (2 * 2 ^ 401). rewrite Rinv_mult. nra.
  - rewrite (Rmult_assoc clip_norm). apply mul_upper; [rewrite Rabs_pos_eq; lra| |lra].
    apply Rmult_le_compat_l; lra.
Qed.

Lemma factor_bounds : 0 <= clip_factor square_norm clip_norm <= 1.
Proof.
  assert (T := target_bounds). assert (0 < / 2 ^ 402) by (apply Rinv_0_lt_compat, pow_lt; lra).
  unfold clip_factor. fold target norm. cbn zeta. fold target norm. destruct (Rle_dec norm target) as [L|L]; [lra|].
  unfold div64. assert (0 <= target / norm <= 1).
  { split; [apply Rlt_le, Rdiv_lt_0_compat; lra|]. apply Rmult_le_reg_r with norm; [lra|].
    unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra. }
  rewrite <- round64_1. split; [apply round64_ge_0; lra|apply round64_le; lra].
Qed.

(** Theorem FACTOR. The factor times the reported norm is below the clip norm by the margin, up to four roundings. *)
Theorem factor_times_norm :
  clip_factor square_norm clip_norm * sqrt square_norm * (1 - u64) <= clip_norm * (1 - CLIP_MARGIN) * (1 + u64) ^ 3.
Proof.
  assert (T := target_bounds). assert (F := factor_bounds). assert (C := clip_norm_positive). assert (U := u64_value).
  assert (V : CLIP_MARGIN = / 1048576) by (unfold CLIP_MARGIN; f_equal; rewrite pow_IZR; reflexivity).
  assert (P402 : 0 < / 2 ^ 402) by (apply Rinv_0_lt_compat, pow_lt; lra).
  set (f := clip_factor square_norm clip_norm) in *. set (x := sqrt square_norm).
  assert (X : 0 <= x) by apply sqrt_pos.
  assert (B1 : clip_norm * (1 - CLIP_MARGIN) * (1 + u64) * (1 + u64) <= clip_norm * (1 - CLIP_MARGIN) * (1 + u64) ^ 3).
  { cbn [pow]. rewrite Rmult_1_r, !Rmult_assoc. do 2 (apply Rmult_le_compat_l; [lra|]). nra. }
  destruct (Rle_or_lt x (clip_norm / 2)) as [Small|Large].
  - apply Rle_trans with (clip_norm / 2).
    + apply Rle_trans with (1 * (clip_norm / 2) * 1); [|lra]. apply Rmult_le_compat; try lra.
      * apply Rmult_le_pos; lra.
      * apply Rmult_le_compat; lra.
    + apply Rle_trans with (clip_norm * (1 - CLIP_MARGIN) * 1); [rewrite V; lra|].
      apply Rmult_le_compat_l; [rewrite V; nra|]. cbn [pow]. rewrite U. lra.
  - assert (X0 : / 2 ^ 401 <= x).
    { change (2 ^ 401) with (2 * 2 ^ 400). rewrite Rinv_mult. lra. }
    assert (Q := power_order 401 1022 ltac:(lia)).
    assert (N : x * (1 - u64) <= norm) by (unfold norm, sqrt64; apply mul_lower; fold x; lra).
    unfold f, clip_factor. cbn zeta. fold target norm. destruct (Rle_dec norm target) as [L|L].
    + rewrite Rmult_1_l. lra.
    + apply Rnot_le_lt in L. assert (N0 : 0 < norm) by lra.
      assert (Nmax : norm <= 2 ^ 513).
      { assert (X512 : x <= 2 ^ 512).
        { unfold x. replace (2 ^ 512) with (sqrt (2 ^ 1024)).
          - apply sqrt_le_1_alt. lra.
          - replace 1024%nat with (512 + 512)%nat by reflexivity. rewrite pow_add. apply sqrt_square, pow_le. lra. }
        assert (M := mul_upper x (2 ^ 512) ltac:(rewrite Rabs_pos_eq; lra) X512 X).
        fold norm in M. unfold norm, sqrt64. fold x. change (2 ^ 513) with (2 * 2 ^ 512).
        assert (0 < 2 ^ 512) by (apply pow_lt; lra). nra. }
      assert (R1 : / 2 ^ 1022 <= target / norm).
      { apply Rle_trans with (/ 2 ^ 402 * / 2 ^ 513).
        - rewrite <- Rinv_mult, <- pow_add. apply power_order. lia.
        - unfold Rdiv. assert (0 < / 2 ^ 513) by (apply Rinv_0_lt_compat, pow_lt; lra).
          apply Rmult_le_compat; try lra. apply Rinv_le_contravar; lra. }
      assert (Pos : 0 <= target / norm) by (apply Rlt_le, Rdiv_lt_0_compat; lra).
      assert (D := mul_upper (target / norm) (target / norm) ltac:(rewrite Rabs_pos_eq; lra) (Rle_refl _) Pos).
      fold (div64 target norm) in D.
      apply Rle_trans with (target / norm * (1 + u64) * norm).
      * rewrite Rmult_assoc. apply Rmult_le_compat; try lra.
        -- unfold div64. now apply round64_ge_0.
        -- apply Rmult_le_pos; lra.
      * replace (target / norm * (1 + u64) * norm) with (target * (1 + u64)) by (field; lra).
        replace (clip_norm * (1 - CLIP_MARGIN) * (1 + u64) ^ 3)
          with (clip_norm * (1 - CLIP_MARGIN) * (1 + u64) * (1 + u64) * (1 + u64)) by ring.
        apply Rmult_le_compat_r; lra.
Qed.

(** * One example *)

(** An example's gradient is one vector for each row and dense parameter that it touches. *)
Definition example_contributions (gradients : list (list R)) (scale : R) : list Z :=
  concat (map (fun g => contribution g scale) gradients).

Lemma example_contributions_concat gradients scale :
  example_contributions gradients scale = contribution (concat gradients) scale.
Proof.
  unfold example_contributions, contribution. induction gradients as [|g gs IH]; [reflexivity|].
  cbn. now rewrite !map_app, IH.
Qed.

(** Theorem CONTRIBUTION. An example's integers, over everything that it touches, are within the clip norm. [unit] is 2^e,
    the grid; dividing by it is exact. *)
Theorem contribution_within_clip_norm gradients unit : 0 < unit ->
  square_sum (concat gradients) <= Rsqr (1 + / 2 ^ 21) * square_norm ->
  square_length (example_contributions gradients (clip_factor square_norm clip_norm / unit)) <= Rsqr (clip_norm / unit).
Proof.
  intros Hu Hn. rewrite example_contributions_concat. assert (F := factor_bounds). assert (T := factor_times_norm).
  assert (C := clip_norm_positive). assert (U := u64_value).
  assert (V : CLIP_MARGIN = / 1048576) by (unfold CLIP_MARGIN; f_equal; rewrite pow_IZR; reflexivity).
  assert (H21 : / 2 ^ 21 = / 2097152) by (f_equal; rewrite pow_IZR; reflexivity).
  set (f := clip_factor square_norm clip_norm) in *. set (x := sqrt square_norm) in *.
  assert (X : 0 <= x) by apply sqrt_pos. assert (XX : square_norm = Rsqr x) by (unfold x; rewrite Rsqr_sqrt; lra).
  eapply Rle_trans; [apply contribution_length|].
  apply Rle_trans with (Rsqr ((1 + u64) * (1 + / 2 ^ 21) * (f * x) / unit)).
  - apply Rle_trans with (Rsqr ((1 + u64) * (f / unit)) * (Rsqr (1 + / 2 ^ 21) * square_norm)).
    + apply Rmult_le_compat_l; [apply Rle_0_sqr|exact Hn].
    + rewrite XX, <- !Rsqr_mult. apply Req_le. f_equal. field. lra.
  - apply Rsqr_incr_1.
    + unfold Rdiv. apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat, Hu|].
      assert (FX : 0 <= f * x) by (apply Rmult_le_pos; lra).
      apply Rmult_le_reg_r with (1 - u64); [rewrite U; lra|].
      apply Rle_trans with ((1 + u64) * (1 + / 2 ^ 21) * (clip_norm * (1 - CLIP_MARGIN) * (1 + u64) ^ 3)).
      * rewrite !(Rmult_assoc ((1 + u64) * (1 + / 2 ^ 21))). apply Rmult_le_compat_l; [rewrite U, H21; lra|].
        exact T.
      * replace ((1 + u64) * (1 + / 2 ^ 21) * (clip_norm * (1 - CLIP_MARGIN) * (1 + u64) ^ 3))
          with (clip_norm * ((1 + u64) * (1 + / 2 ^ 21) * (1 - CLIP_MARGIN) * (1 + u64) ^ 3)) by ring.
        apply Rmult_le_compat_l; [lra|]. rewrite U, V, H21. cbn [pow]. lra.
    + unfold Rdiv. apply Rmult_le_pos; [|apply Rlt_le, Rinv_0_lt_compat, Hu].
      repeat apply Rmult_le_pos; try lra; rewrite ?U, ?H21; lra.
    + unfold Rdiv. apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Hu].
Qed.
End Factor.

(** * The batch *)

Lemma add_vectors_comm a : forall b, add_vectors a b = add_vectors b a.
Proof.
  unfold add_vectors. induction a as [|x a IH]; intros [|y b]; cbn; try reflexivity. f_equal; [lia|apply IH].
Qed.

Lemma add_vectors_assoc a : forall b c, add_vectors (add_vectors a b) c = add_vectors a (add_vectors b c).
Proof.
  unfold add_vectors. induction a as [|x a IH]; intros [|y b] [|z c]; cbn; try reflexivity. f_equal; [lia|apply IH].
Qed.

Lemma batch_sum_fold parts zero : batch_sum parts zero = fold_left add_vectors parts zero.
Proof. reflexivity. Qed.

Lemma fold_add parts : forall total c,
  fold_left add_vectors parts (add_vectors total c) = add_vectors (fold_left add_vectors parts total) c.
Proof.
  induction parts as [|p parts IH]; intros total c; [reflexivity|]. cbn [fold_left]. rewrite <- IH. f_equal.
  now rewrite !add_vectors_assoc, (add_vectors_comm c).
Qed.

(** Theorem ADD OR REMOVE. One example more or less changes the sum by exactly its contribution. *)
Theorem batch_sum_moves_by_contribution before part after zero :
  batch_sum (before ++ part :: after) zero = add_vectors (batch_sum (before ++ after) zero) part.
Proof.
  change (fold_left add_vectors (before ++ part :: after) zero =
          add_vectors (fold_left add_vectors (before ++ after) zero) part).
  rewrite !fold_left_app. cbn [fold_left]. apply fold_add.
Qed.

(** Theorem ORDER. The order of the examples does not matter. *)
Theorem batch_sum_order parts parts' zero : Permutation parts parts' -> batch_sum parts zero = batch_sum parts' zero.
Proof.
  intro P. change (fold_left add_vectors parts zero = fold_left add_vectors parts' zero). revert zero. induction P as [|p l l' P IH|p q l|l l' l'' P IH P' IH']; intro zero; cbn [fold_left].
  - reflexivity.
  - apply IH.
  - rewrite !add_vectors_assoc. f_equal. f_equal. apply add_vectors_comm.
  - now rewrite IH.
Qed.

Definition sub_vectors (a b : list Z) : list Z := map (fun '(x, y) => (x - y)%Z) (combine a b).

Lemma sub_add a : forall c, length a = length c -> sub_vectors (add_vectors a c) a = c.
Proof.
  unfold sub_vectors, add_vectors. induction a as [|x a IH]; intros [|y c] E; try discriminate; [reflexivity|].
  cbn. injection E as E. rewrite IH by exact E. f_equal. lia.
Qed.

Lemma batch_sum_length n parts : forall zero, length zero = n -> (forall p, In p parts -> length p = n) ->
  length (batch_sum parts zero) = n.
Proof.
  setoid_rewrite batch_sum_fold. induction parts as [|p parts IH]; intros zero E H; [exact E|]. cbn [fold_left]. apply IH.
  - unfold add_vectors. rewrite map_length, combine_length, E, (H p) by now left. lia.
  - intros q Hq. apply H. now right.
Qed.

(** What the batch adds to one row or dense parameter: the contributions before and after the example's, its own gradient
    there, and the zero vector that the sum starts from. *)
Record place := { before : list (list Z); after : list (list Z); gradient : list R; nothing : list Z }.

Definition well_shaped (p : place) : Prop :=
  length (nothing p) = length (gradient p) /\
  forall part, In part (before p ++ after p) -> length part = length (gradient p).

(** The sum with the example minus the sum without it. *)
Definition moved (scale : R) (p : place) : list Z :=
  sub_vectors (batch_sum (before p ++ contribution (gradient p) scale :: after p) (nothing p))
              (batch_sum (before p ++ after p) (nothing p)).

(** Theorem SENSITIVITY. Adding or removing one example moves the integer sums, over all rows of all tables together, by an
    L2 distance of at most the clip norm. *)
Theorem one_example_moves_the_sums_by_at_most_the_clip_norm square_norm clip_norm unit places :
  / 2 ^ 400 <= clip_norm <= 2 ^ 400 -> 0 <= square_norm <= 2 ^ 1024 -> 0 < unit ->
  (forall p, In p places -> well_shaped p) ->
  square_sum (concat (map gradient places)) <= Rsqr (1 + / 2 ^ 21) * square_norm ->
  square_length (concat (map (moved (clip_factor square_norm clip_norm / unit)) places)) <= Rsqr (clip_norm / unit).
Proof.
  intros HC HS Hu Hw Hn. set (scale := clip_factor square_norm clip_norm / unit).
  replace (map (moved scale) places) with (map (fun g => contribution g scale) (map gradient places)).
  - now apply contribution_within_clip_norm.
  - rewrite map_map. apply map_ext_in. intros p Hp. destruct (Hw p Hp) as [Z0 L]. unfold moved.
    rewrite batch_sum_moves_by_contribution, sub_add; [reflexivity|].
    unfold contribution. rewrite !map_length. now apply batch_sum_length.
Qed.

(** * The integers fit *)

Definition within_size (b : Z) (v : list Z) : Prop := Forall (fun x => (Z.abs x <= b)%Z) v.

Lemma add_vectors_size a b : forall v w, within_size a v -> within_size b w -> within_size (a + b) (add_vectors v w).
Proof.
  unfold within_size, add_vectors. induction v as [|x v IH]; intros [|y w] Hv Hw; cbn; try constructor.
  - inversion_clear Hv. inversion_clear Hw. lia.
  - inversion_clear Hv. inversion_clear Hw. now apply IH.
Qed.

(** After any number of examples, every partial sum is at most that many times the largest contribution. *)
Lemma batch_sum_size b parts : (forall p, In p parts -> within_size b p) -> forall k total, within_size k total ->
  within_size (k + Z.of_nat (length parts) * b) (fold_left add_vectors parts total).
Proof.
  induction parts as [|p parts IH]; intros H k total Ht.
  - cbn [length fold_left]. now replace (k + Z.of_nat 0 * b)%Z with k by lia.
  - cbn [length fold_left]. replace (k + Z.of_nat (S (length parts)) * b)%Z
      with ((k + b) + Z.of_nat (length parts) * b)%Z by lia.
    apply IH; [intros; apply H; now right|]. apply add_vectors_size; [exact Ht|]. apply H. now left.
Qed.

Lemma square_length_bounds_coordinates v b : (0 <= b)%Z -> square_length v <= Rsqr (IZR b) -> within_size b v.
Proof.
  unfold square_length, within_size. intro Hb. induction v as [|x v IH]; cbn [map square_sum]; intro H; constructor.
  - assert (N := square_sum_nonneg (map IZR v)). apply le_IZR. rewrite abs_IZR.
    apply Rsqr_incr_0_var; [|now apply IZR_le]. rewrite <- Rsqr_abs. unfold Rsqr in *. lra.
  - apply IH. assert (0 <= IZR x * IZR x) by apply Rle_0_sqr. lra.
Qed.

(** Theorem INT64. If no contribution is longer than 2^32 units (the grid is chosen so that the clip norm is not), the sum of
    fewer than 2^31 examples fits an int64, and so does every partial sum. *)
Theorem batch_sum_fits_int64 parts n : (Z.of_nat (length parts) < 2 ^ 31)%Z ->
  (forall p, In p parts -> square_length p <= Rsqr (IZR (2 ^ 32))) ->
  Forall (fun x => (- 2 ^ 63 < x < 2 ^ 63)%Z) (batch_sum parts (repeat 0%Z n)).
Proof.
  intros Hn Hp. assert (S := batch_sum_size (2 ^ 32) parts).
  specialize (S (fun p H => square_length_bounds_coordinates p (2 ^ 32) ltac:(lia) (Hp p H)) 0%Z (repeat 0%Z n)).
  assert (Z0 : within_size 0 (repeat 0%Z n)) by (apply Forall_forall; intros x Hx; apply repeat_spec in Hx; subst; cbn; lia).
  specialize (S Z0). eapply Forall_impl; [|exact S]. cbn beta. intros x Hx. lia.
Qed.
