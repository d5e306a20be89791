(** * GaussianDensity: the sum of two independent Gaussians has the Gaussian density with the summed variance.

    By improper Riemann integrals over the real line. The density of N(0, v) is

        density v x = exp(-x^2 / (2 v)) / (whole_area * sqrt v),    whole_area = integral of exp(-x^2 / 2),

    where the integral is shown to exist and to be positive; that it is sqrt(2 pi) is not needed. [density_affine] is
    the hypothesis [gauss_affine] of Aggregate.v, read as a statement about densities. *)

From Coq Require Import Reals Lra Psatz.
Set Warnings "-ambiguous-paths". (* one of Coquelicot's coercions; harmless *)
From Coquelicot Require Import Coquelicot.
Local Open Scope R_scope.

Notation on_the_line f value := (is_RInt_gen f (Rbar_locally m_infty) (Rbar_locally p_infty) value).

(** ** The bell and its area *)

Definition bell x := exp (- (x * x) / 2).

Lemma bell_continuous x : continuous bell x.
Proof. apply (ex_derive_continuous bell). unfold bell. auto_derive. auto. Qed.

Lemma bell_integrable a b : ex_RInt bell a b.
Proof. apply (ex_RInt_continuous (V := R_CompleteNormedModule)). intros; apply bell_continuous. Qed.

Lemma bell_pos x : 0 < bell x.
Proof. apply exp_pos. Qed.

Definition area x := RInt bell 0 x.

Lemma integral_of_bell a b : is_RInt bell a b (area b - area a).
Proof.
  unfold area. replace (RInt bell 0 b - RInt bell 0 a) with (RInt bell a b).
  - apply (RInt_correct (V := R_CompleteNormedModule)), bell_integrable.
  - rewrite <- (RInt_Chasles (V := R_CompleteNormedModule) bell 0 a b) by apply bell_integrable. unfold plus; cbn. ring.
Qed.

Lemma area_increasing a b : a <= b -> area a <= area b.
Proof.
  intro H. assert (E := is_RInt_unique _ _ _ _ (integral_of_bell a b)). assert (0 <= RInt bell a b); [|lra].
  apply RInt_ge_0; auto using bell_integrable. intros; apply Rlt_le, bell_pos.
Qed.

Lemma area_odd x : area (- x) = - area x.
Proof.
  unfold area. apply is_RInt_unique.
  assert (K : is_RInt (fun y => opp (bell (- y))) 0 (-x) (RInt bell 0 x)).
  { apply (is_RInt_comp_opp bell 0 (-x)). rewrite Ropp_0, Ropp_involutive.
    apply (RInt_correct (V := R_CompleteNormedModule)), bell_integrable. }
  apply is_RInt_opp in K. eapply is_RInt_ext; [|exact K]. intros y _. cbn. unfold bell.
  rewrite Ropp_involutive. do 2 f_equal. ring.
Qed.

(** Dominated by the integral of exp(1/2 - x). *)
Lemma area_bounded x : 0 <= x -> area x <= exp (1/2).
Proof.
  intro Hx. assert (I : is_RInt (fun y => exp (1/2 - y)) 0 x (minus (- exp (1/2 - x)) (- exp (1/2 - 0)))).
  { apply (is_RInt_derive (V := R_CompleteNormedModule) (fun y => - exp (1/2 - y))).
    - intros; auto_derive; [auto|]. unfold Rminus. ring.
    - intros. apply (ex_derive_continuous (fun y => exp (1/2 - y))). auto_derive. auto. }
  assert (L : RInt bell 0 x <= RInt (fun y => exp (1/2 - y)) 0 x).
  { apply RInt_le; auto using bell_integrable. now exists (minus (- exp (1/2 - x)) (- exp (1/2 - 0))).
    intros y _. unfold bell. assert (Q := Rle_0_sqr (y - 1)). unfold Rsqr in Q.
    destruct (Req_dec (-(y*y)/2) (1/2 - y)) as [-> |N]; [apply Rle_refl|]. left. apply exp_increasing. lra. }
  rewrite (is_RInt_unique _ _ _ _ I) in L. unfold area, minus, plus, opp in *; cbn in *. rewrite Rminus_0_r in L.
  assert (P := exp_pos (1/2 - x)). lra.
Qed.

(** The limit of [area] at infinity: its least upper bound. *)
Definition half_area : R := Lub_Rbar (fun y => exists x, 0 <= x /\ y = area x).

Lemma half_area_lub : is_lub (fun y => exists x, 0 <= x /\ y = area x) half_area.
Proof.
  destruct (completeness (fun y => exists x, 0 <= x /\ y = area x)) as [m Hm].
  - exists (exp (1/2)). intros y (x & Hx & ->). now apply area_bounded.
  - exists (area 0), 0. split; [lra|reflexivity].
  - unfold half_area. rewrite (is_lub_Rbar_unique _ (Finite m)); [exact Hm|]. destruct Hm as [H1 H2]. split.
    + intros y Hy. cbn. now apply H1.
    + intros [b| |] Hb; [apply H2; intros y Hy; exact (Hb y Hy)|exact I|].
      apply (Hb (area 0)). exists 0. split; [lra|reflexivity].
Qed.

Lemma area_at_infinity : filterlim area (Rbar_locally p_infty) (locally half_area).
Proof.
  apply filterlim_locally. intro eps. destruct half_area_lub as [U L].
  assert (E : exists x, 0 <= x /\ half_area - eps < area x).
  { apply Classical_Pred_Type.not_all_not_ex. intro N.
    assert (half_area <= half_area - eps); [|destruct eps; cbn in *; lra].
    apply L. intros y (x & Hx & ->). apply Rnot_lt_le. intro. apply (N x). auto. }
  destruct E as (x0 & H0 & H1). exists x0. intros x Hx.
  unfold ball; cbn; unfold AbsRing_ball, abs, minus, plus, opp; cbn.
  assert (area x <= half_area) by (apply U; exists x; split; [lra|reflexivity]).
  assert (area x0 <= area x) by (apply area_increasing; lra).
  apply Rabs_lt_between. destruct eps; cbn in *. lra.
Qed.

Lemma area_at_minus_infinity : filterlim area (Rbar_locally m_infty) (locally (- half_area)).
Proof.
  apply filterlim_ext with (f := fun x => - area (- x)). { intro. rewrite area_odd. ring. }
  apply (filterlim_comp _ _ _ (fun x => area (- x)) Ropp _ (locally half_area)); [|apply (filterlim_opp half_area)].
  apply (filterlim_comp _ _ _ Ropp area _ (Rbar_locally p_infty));
    [apply (filterlim_Rbar_opp m_infty)|exact area_at_infinity].
Qed.

Definition whole_area := 2 * half_area.

Lemma whole_area_pos : 0 < whole_area.
Proof.
  unfold whole_area. assert (area 1 <= half_area) by (apply half_area_lub; exists 1; split; [lra|reflexivity]).
  assert (0 < area 1); [|lra]. apply RInt_gt_0; [lra|intros; apply bell_pos|intros; apply bell_continuous].
Qed.

(** The integral of exp(-(x - m)^2 / (2 s^2)) is s * whole_area. *)
Lemma scaled_bell m s : 0 < s -> on_the_line (fun x => bell ((x - m) / s)) (s * whole_area).
Proof.
  intro Hs.
  assert (Aff : forall c, (c = p_infty \/ c = m_infty) ->
    filterlim (fun x => (x - m) / s) (Rbar_locally c) (Rbar_locally c)).
  { intros c [-> | ->]; intros P [M HM]; exists (s * M + m); intros x Hx; apply HM.
    - apply Rlt_div_r; lra.
    - apply Rlt_div_l; lra. }
  apply (filterlimi_lim_ext_loc (fun ab => s * (area ((snd ab - m) / s) - area ((fst ab - m) / s)))).
  - apply filter_forall. intros [a b]. cbn [fst snd].
    assert (K := is_RInt_comp_lin (V := R_NormedModule) bell (/ s) (- m / s) a b
      (area ((b - m) / s) - area ((a - m) / s))).
    replace (/ s * a + - m / s) with ((a - m) / s) in K by (field; lra).
    replace (/ s * b + - m / s) with ((b - m) / s) in K by (field; lra).
    specialize (K (integral_of_bell _ _)). apply (is_RInt_scal _ a b s) in K.
    eapply is_RInt_ext; [|exact K]. intros x _. unfold scal; cbn; unfold mult; cbn.
    replace (/ s * x + - m / s) with ((x - m) / s) by (field; lra). field. lra.
  - replace (s * whole_area) with (s * (half_area + half_area)) by (unfold whole_area; ring).
    apply (filterlim_comp _ _ _ (fun ab => area ((snd ab - m) / s) - area ((fst ab - m) / s)) (fun y => s * y) _
      (locally (half_area + half_area))); [|apply (filterlim_scal_r s (half_area + half_area))].
    unfold Rminus.
    apply (filterlim_comp_2 (G := locally half_area) (H := locally half_area)
      (fun ab : R * R => area ((snd ab - m) / s)) (fun ab => - area ((fst ab - m) / s)) Rplus).
    + apply (filterlim_comp _ _ _ snd (fun x => area ((x - m) / s)) _ (Rbar_locally p_infty));
        [apply filterlim_snd|].
      apply (filterlim_comp _ _ _ (fun x => (x - m) / s) area _ (Rbar_locally p_infty));
        [apply (Aff p_infty); auto|apply area_at_infinity].
    + apply (filterlim_comp _ _ _ fst (fun x => - area ((x - m) / s)) _ (Rbar_locally m_infty));
        [apply filterlim_fst|].
      apply (filterlim_comp _ _ _ (fun x => area ((x - m) / s)) Ropp _ (locally (- half_area))).
      * apply (filterlim_comp _ _ _ (fun x => (x - m) / s) area _ (Rbar_locally m_infty));
          [apply (Aff m_infty); auto|apply area_at_minus_infinity].
      * rewrite <- (Ropp_involutive half_area) at 2. apply (filterlim_opp (- half_area)).
    + apply (filterlim_plus half_area half_area).
Qed.

(** ** The density *)

Definition density v x := bell (x / sqrt v) / (whole_area * sqrt v).

(** integral of density v = 1. *)
Theorem density_integrates_to_one v : 0 < v -> on_the_line (density v) 1.
Proof.
  intro Hv. assert (S := sqrt_lt_R0 v Hv). assert (AP := whole_area_pos). assert (B := scaled_bell 0 (sqrt v) S).
  apply (is_RInt_gen_scal _ (/ (whole_area * sqrt v))) in B.
  replace 1 with (scal (/ (whole_area * sqrt v)) (sqrt v * whole_area)).
  2:{ unfold scal; cbn; unfold mult; cbn. field. lra. }
  eapply is_RInt_gen_ext; [|exact B]. apply filter_forall. intros ab x _. unfold density, scal; cbn; unfold mult; cbn.
  rewrite Rminus_0_r. field. lra.
Qed.

(** y^2 / v + (q - a y)^2 / v' = (y - a v q / w)^2 w / (v v') + q^2 / w,  w = a^2 v + v'. *)
Lemma complete_the_square a v v' y q : 0 < v -> 0 < v' -> 0 < a * a * v + v' ->
  y * y / v + (q - a * y) * (q - a * y) / v'
  = (y - a * v * q / (a * a * v + v')) * (y - a * v * q / (a * a * v + v')) / (v * v' / (a * a * v + v'))
    + q * q / (a * a * v + v').
Proof. intros. field. repeat split; lra. Qed.

(** integral over x of N(x; m, v) N(z; a x, v') = N(z; a m, a^2 v + v').
    A Gaussian, multiplied by a constant and with an independent Gaussian added, is Gaussian: the means follow, and the
    variances are a^2 v + v'. *)
Theorem density_affine a m v v' z : 0 < v -> 0 < v' ->
  on_the_line (fun x => density v (x - m) * density v' (z - a * x)) (density (a * a * v + v') (z - a * m)).
Proof.
  intros Hv Hv'. assert (Sv := sqrt_lt_R0 v Hv). assert (Sv' := sqrt_lt_R0 v' Hv').
  assert (Hw : 0 < a * a * v + v').
  { assert (0 <= a * a * v) by (apply Rmult_le_pos; [apply Rle_0_sqr|lra]). lra. }
  set (w := a * a * v + v') in *. assert (Sw := sqrt_lt_R0 w Hw). assert (AP := whole_area_pos).
  assert (Qv := sqrt_sqrt v (Rlt_le _ _ Hv)). assert (Qv' := sqrt_sqrt v' (Rlt_le _ _ Hv')).
  assert (Qw := sqrt_sqrt w (Rlt_le _ _ Hw)).
  set (s := sqrt v) in *. set (s' := sqrt v') in *. set (sw := sqrt w) in *.
  assert (Hs : 0 < s * s' / sw) by (apply Rdiv_lt_0_compat; [now apply Rmult_lt_0_compat|assumption]).
  set (c := (m * v' + a * v * z) / w).
  assert (B := scaled_bell c (s * s' / sw) Hs).
  set (k := bell ((z - a * m) / sw) / (whole_area * s * (whole_area * s'))).
  apply (is_RInt_gen_scal _ k) in B.
  replace (density w (z - a * m)) with (scal k (s * s' / sw * whole_area)).
  2:{ unfold density, k, scal; cbn; unfold mult; cbn. fold sw. field. repeat split; lra. }
  eapply is_RInt_gen_ext; [|exact B]. apply filter_forall. intros ab x _.
  unfold density, k, scal; cbn; unfold mult; cbn. fold s s'.
  transitivity (bell ((z - a * m) / sw) * bell ((x - c) / (s * s' / sw)) / (whole_area * s * (whole_area * s')));
    [field; repeat split; lra|].
  transitivity (bell ((x - m) / s) * bell ((z - a * x) / s') / (whole_area * s * (whole_area * s')));
    [|field; repeat split; lra].
  f_equal. unfold bell. rewrite <- !exp_plus. f_equal.
  assert (Square : forall p q, q <> 0 -> p / q * (p / q) = p * p / (q * q)) by (intros; field; assumption).
  rewrite !Square by (apply Rgt_not_eq; assumption).
  replace (s * s' * (s * s')) with ((s * s) * (s' * s')) by ring.
  rewrite Qv, Qv', Qw. replace (z - a * x) with ((z - a * m) - a * (x - m)) by ring.
  replace (x - c) with ((x - m) - a * v * (z - a * m) / w) by (unfold c, w; field; exact (Rgt_not_eq _ _ Hw)).
  assert (K := complete_the_square a v v' (x - m) (z - a * m) Hv Hv' Hw). fold w in K. lra.
Qed.

(** integral over x of density v x * density v' (z - x) = density (v + v') z.
    Independent Gaussian noises of two steps add up to Gaussian noise with the sum of their variances. *)
Theorem density_convolution v v' z : 0 < v -> 0 < v' ->
  on_the_line (fun x => density v x * density v' (z - x)) (density (v + v') z).
Proof.
  intros Hv Hv'. assert (A := density_affine 1 0 v v' z Hv Hv'). cbn beta in *.
  replace (1 * 1 * v + v') with (v + v') in A by ring. replace (z - 1 * 0) with z in A by ring.
  eapply is_RInt_gen_ext; [|exact A]. apply filter_forall. intros ab x _. cbn beta. now rewrite Rminus_0_r, Rmult_1_l.
Qed.

(** density (a + b) (x + y) * density (a b / (a + b)) (x - (x + y) a / (a + b)) = density a x * density b y.
    The split of the bridge: drawing the sum of two independent Gaussians first, and then the left one as its share of the
    sum plus noise of variance a b / (a + b), gives the two Gaussians. This is what [Settlement._left] draws, before it
    rounds to the grid. *)
Theorem density_of_a_split a b x y : 0 < a -> 0 < b ->
  density (a + b) (x + y) * density (a * b / (a + b)) (x - (x + y) * (a / (a + b))) = density a x * density b y.
Proof.
  intros Ha Hb. assert (Hv : 0 < a + b) by lra.
  assert (Hw : 0 < a * b / (a + b)) by (apply Rdiv_lt_0_compat; [now apply Rmult_lt_0_compat|assumption]).
  assert (Sa := sqrt_lt_R0 a Ha). assert (Sb := sqrt_lt_R0 b Hb). assert (Sv := sqrt_lt_R0 (a + b) Hv).
  assert (Sw := sqrt_lt_R0 _ Hw). assert (AP := whole_area_pos).
  assert (Qa := sqrt_sqrt a (Rlt_le _ _ Ha)). assert (Qb := sqrt_sqrt b (Rlt_le _ _ Hb)).
  assert (Qv := sqrt_sqrt _ (Rlt_le _ _ Hv)). assert (Qw := sqrt_sqrt _ (Rlt_le _ _ Hw)).
  assert (Roots : sqrt (a + b) * sqrt (a * b / (a + b)) = sqrt a * sqrt b).
  { rewrite <- sqrt_mult, <- sqrt_mult by lra. f_equal. field. lra. }
  unfold density. set (sa := sqrt a) in *. set (sb := sqrt b) in *. set (sv := sqrt (a + b)) in *.
  set (sw := sqrt (a * b / (a + b))) in *. set (d := x - (x + y) * (a / (a + b))) in *.
  transitivity (bell ((x + y) / sv) * bell (d / sw) / (whole_area * whole_area * (sv * sw))); [field; repeat split; lra|].
  transitivity (bell (x / sa) * bell (y / sb) / (whole_area * whole_area * (sa * sb))); [|field; repeat split; lra].
  rewrite Roots. f_equal. unfold bell. rewrite <- !exp_plus. f_equal.
  assert (Square : forall p q, q <> 0 -> p / q * (p / q) = p * p / (q * q)) by (intros; field; assumption).
  rewrite !Square by (apply Rgt_not_eq; assumption). rewrite Qa, Qb, Qv, Qw. unfold d. field. repeat split; lra.
Qed.
