(** float64 as Python computes it: every operation is the real operation, rounded to nearest, ties to even.

    The format has 53 bits and gradual underflow down to 2^-1074. Overflow is outside this file: a theorem about numbers
    that could leave the range says so in its hypotheses. *)
Require Import Reals ZArith Lra Lia List.
From Flocq Require Import Core Relative.
Import ListNotations.
Open Scope R_scope.

Definition format64 := generic_format radix2 (FLT_exp (-1074) 53).
Definition round64 (x : R) : R := round radix2 (FLT_exp (-1074) 53) ZnearestE x.

Definition sub64 (x y : R) : R := round64 (x - y).
Definition mul64 (x y : R) : R := round64 (x * y).
Definition div64 (x y : R) : R := round64 (x / y).
Definition sqrt64 (x : R) : R := round64 (sqrt x).

(** Exact integer vectors, added coordinate by coordinate. *)
Definition add_vectors (a b : list Z) : list Z := map (fun '(x, y) => (x + y)%Z) (combine a b).

(** Unit roundoff. *)
Definition u64 : R := / 2 ^ 53.

#[export] Instance precision64 : Prec_gt_0 53 := eq_refl.

Lemma bpow_negative n : bpow radix2 (- Z.of_nat n) = / 2 ^ n.
Proof. rewrite bpow_opp. f_equal. rewrite <- IZR_Zpower, <- pow_IZR by lia. reflexivity. Qed.

(** Above 2^-1022, rounding changes a number by at most a relative u. *)
Lemma round64_relative x : / 2 ^ 1022 <= Rabs x -> Rabs (round64 x - x) <= u64 * Rabs x.
Proof.
  intro H. unfold round64, u64.
  assert (E := relative_error_N_FLT radix2 (-1074) 53 eq_refl (fun z => negb (Z.even z)) x).
  replace (/ 2 * bpow radix2 (- (53) + 1)) with (/ 2 ^ 53) in E.
  2:{ change (- (53) + 1)%Z with (- Z.of_nat 52)%Z. rewrite bpow_negative. change (2 ^ 53) with (2 * 2 ^ 52).
      rewrite Rinv_mult. reflexivity. }
  apply E. change (-1074 + 53 - 1)%Z with (- Z.of_nat 1022)%Z. rewrite bpow_negative. exact H.
Qed.

Lemma round64_le x y : x <= y -> round64 x <= round64 y.
Proof. apply round_le; [apply FLT_exp_valid; reflexivity|apply valid_rnd_N]. Qed.

Lemma round64_0 : round64 0 = 0.
Proof. apply round_0, valid_rnd_N. Qed.

Lemma round64_1 : round64 1 = 1.
Proof.
  apply round_generic; [apply valid_rnd_N|]. replace 1 with (bpow radix2 0) by reflexivity.
  apply generic_format_bpow. unfold FLT_exp. cbn. lia.
Qed.

Lemma round64_ge_0 x : 0 <= x -> 0 <= round64 x.
Proof. intro H. rewrite <- round64_0. now apply round64_le. Qed.

Lemma round64_opp x : round64 (- x) = - round64 x.
Proof. unfold round64. apply round_NE_opp. Qed.
