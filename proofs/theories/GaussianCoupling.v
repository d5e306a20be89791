(** * GaussianCoupling: the second, measure-free way to the aggregate theorem.

    Fix one outcome: every noise value z(row, step) that an eager run would draw. Run eager and lazy on it, lazy paying
    for a span by the exact sum of its steps. Four facts, none of which mentions a measure:

    1. [pathwise]: the two runs give the same released table and the same reads, for every outcome.
    2. [spans_form_a_chain]: the spans that a row is charged are 0 = h_0 <= h_1 <= ... <= h_k = T, without gap or
       overlap; and keeping the list of spans changes nothing in the run ([log_is_silent]).
    3. [owed_noise_is_unused]: what has happened so far does not depend on the noise that a row still owes: the span
       that is settled next was fixed without looking at the values in it.
    4. [blocks_are_independent]: over a chain the quadratic form of the block sums has no mixed terms, so the joint
       characteristic function of Gaussian block sums is the product of those of N(0, sum of lr_t^2 s_t^2).

    So each block may be replaced by one fresh normal with the summed variance, which is aggregate mode. What stays on
    paper is that characteristic functions determine laws, and conditioning on the past of a settlement, to which
    fact 3 gives the hypothesis. *)

Require Import List Arith Lia Reals Lra.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule FiniteLaws.

Local Notation Plain := (fun A : Set => A).

(** ** Plain execution *)

Lemma scatter_other {Val : Set} r : forall rs vs (L : Table Val), ~ In r rs -> scatter L rs vs r = L r.
Proof.
  unfold scatter. induction rs as [|a rs IH]; intros [|v vs] L H; try reflexivity. cbn.
  rewrite IH by (intro; apply H; now right). apply upd_other. intros ->. apply H. now left.
Qed.

Lemma scatter_in {Val : Set} (f : nat -> Val) r : forall rs L, In r rs -> scatter L rs (map f rs) r = f r.
Proof.
  unfold scatter. induction rs as [|a rs IH]; intros L H; [easy|]. cbn.
  destruct (in_dec Nat.eq_dec r rs) as [Hr|Hr]; [now apply IH|].
  destruct H as [->|H]; [|easy]. change (scatter (upd L r (f r)) rs (map f rs) r = f r).
  rewrite scatter_other by assumption. apply upd_same.
Qed.

Section Run.
Context {Val Grad Side : Set}.
Variable owe : nat -> nat -> nat -> Val -> Val.

Lemma by_row_plain rs H t (L : Table Val) :
  @by_row Plain Identity Val owe rs (map H rs) t (map L rs) = map (fun r => owe r (H r) t (L r)) rs.
Proof. induction rs as [|r rs IH]; [reflexivity|]. cbn in *. now rewrite IH. Qed.

Definition settle (L : Table Val) (H : History) (t : nat) (rs : list nat) : Table Val * History :=
  @settle_rows Plain Identity Val L H t rs (@by_row Plain Identity Val owe).

Definition step (L : Table Val) (H : History) (t : nat) (program : Program Val (list nat * Grad * Side))
    (ahead : list nat) (update : nat -> list nat -> Grad -> list Val -> list Val) : Table Val * History * Side :=
  @lazy_step Plain Identity Val Grad Side L H t program ahead update (@by_row Plain Identity Val owe).

Lemma settle_is L H t rs :
  settle L H t rs
  = (scatter L (distinct rs) (map (fun r => owe r (H r) t (L r)) (distinct rs)), fill H (distinct rs) t).
Proof. unfold settle, settle_rows, gather. cbn. now rewrite by_row_plain. Qed.

Lemma settle_history L H t rs : snd (settle L H t rs) = fill H (distinct rs) t.
Proof. now rewrite settle_is. Qed.

(** A settled row has paid through t; another is as it was. *)
Lemma settle_row L H t rs r :
  (fst (settle L H t rs) r, snd (settle L H t rs) r)
  = if in_dec Nat.eq_dec r rs then (owe r (H r) t (L r), t) else (L r, H r).
Proof.
  rewrite settle_is. cbn [fst snd]. destruct (in_dec Nat.eq_dec r rs) as [Hr|Hr].
  - assert (Hd : In r (distinct rs)) by now apply nodup_In.
    rewrite fill_in by assumption. f_equal. now apply (scatter_in (fun r => owe r (H r) t (L r))).
  - assert (Hd : ~ In r (distinct rs)) by (intro; apply Hr; now apply (nodup_In Nat.eq_dec)).
    now rewrite fill_out, scatter_other.
Qed.

Lemma step_done L H t touched gradient side ahead update :
  step L H t (Done (touched, gradient, side)) ahead update
  = let '(L1, H1) := settle L H t touched in
    let '(L2, H2) := settle (scatter L1 touched (update t touched gradient (gather L1 touched))) H1 (t + 1) ahead in
    (L2, H2, side).
Proof. reflexivity. Qed.

Lemma step_read L H t asked next ahead update :
  step L H t (Read asked next) ahead update
  = let '(L1, H1) := settle L H t asked in step L1 H1 t (next (gather L1 asked)) ahead update.
Proof. reflexivity. Qed.

(** Histories grow, and never run ahead of the next step. *)
Lemma settle_grows (L : Table Val) (H : History) t rs : (forall r, H r <= t) ->
  forall r, H r <= snd (settle L H t rs) r <= t.
Proof.
  intros HH r. assert (E := f_equal snd (settle_row L H t rs r)). cbn [snd] in E.
  rewrite E. specialize (HH r). destruct (in_dec Nat.eq_dec r rs); cbn [snd]; lia.
Qed.

Lemma step_grows t ahead update : forall program (L : Table Val) (H : History),
  (forall r, H r <= t) ->
  forall r, H r <= snd (fst (step L H t program ahead update)) r <= t + 1.
Proof.
  induction program as [[[touched gradient] side]|asked next IH]; intros L H HH r.
  - rewrite step_done. assert (G := settle_grows L H t touched HH).
    destruct (settle L H t touched) as [L1 H1]. cbn [snd] in G.
    assert (H1' : forall r, H1 r <= t + 1) by (intro x; specialize (G x); lia).
    set (L1' := scatter L1 touched (update t touched gradient (gather L1 touched))).
    assert (G' := settle_grows L1' H1 (t + 1) ahead H1').
    destruct (settle _ H1 (t + 1) ahead) as [L2 H2]. cbn [snd fst] in *. specialize (G r). specialize (G' r). lia.
  - rewrite step_read. assert (G := settle_grows L H t asked HH).
    destruct (settle L H t asked) as [L1 H1]. cbn [snd] in G.
    assert (G' := IH (gather L1 asked) L1 H1 (fun x => proj2 (G x)) r). specialize (G r). lia.
Qed.

(** The loop of the lazy run, from step t on. *)
Variable plan : nat -> Side -> Program Val (list nat * Grad * Side).
Variable look_ahead : nat -> Side -> list nat.
Variable update : nat -> list nat -> Grad -> list Val -> list Val.

Fixpoint loop (n t : nat) (state : Table Val * History * Side) : Table Val * History * Side :=
  match n with
  | O => state
  | S n => let '(L, H, side) := state in loop n (S t) (step L H t (plan t side) (look_ahead t side) update)
  end.

Lemma loop_is_run L H side start stop :
  @lazy_run Plain Identity Val Grad Side L H side start stop plan look_ahead update (@by_row Plain Identity Val owe)
  = loop (stop - start) start (L, H, side).
Proof.
  unfold lazy_run. cbn [bind ret Identity]. generalize (stop - start) as n. intro n. revert start L H side.
  induction n as [|n IH]; intros t L H side; [reflexivity|]. cbn [seq foldM loop bind Identity].
  fold (step L H t (plan t side) (look_ahead t side) update).
  destruct (step L H t (plan t side) (look_ahead t side) update) as [[L' H'] side']. apply IH.
Qed.

Lemma loop_grows : forall n t (L : Table Val) (H : History) side, (forall r, H r <= t) ->
  forall r, H r <= snd (fst (loop n t (L, H, side))) r <= t + n.
Proof.
  induction n as [|n IH]; intros t L H side HH r; cbn [loop].
  - cbn [fst snd]. specialize (HH r). lia.
  - assert (G := step_grows t (look_ahead t side) update (plan t side) L H HH).
    destruct (step L H t (plan t side) (look_ahead t side) update) as [[L1 H1] side1]. cbn [fst snd] in G.
    assert (H1' : forall x, H1 x <= S t) by (intro x; specialize (G x); lia).
    specialize (IH (S t) L1 H1 side1 H1' r). specialize (G r). lia.
Qed.

Lemma release_is L H t rows :
  @release Plain Identity Val L H t rows (@by_row Plain Identity Val owe) = settle L H t rows.
Proof. unfold release, settle. cbn [bind ret Identity]. now destruct (settle_rows _ _ _ _ _). Qed.
End Run.

(** ** Fact 3: what is owed has not been used *)

Section Unused.
Context {Val Grad Side : Set}.
Variables owe other : nat -> nat -> nat -> Val -> Val.
(** The two kernels agree on every span that ends by [through r]. *)
Variable through : History.
Hypothesis agree : forall r a b w, b <= through r -> owe r a b w = other r a b w.

Lemma settle_agrees L H t rs : (forall r, snd (settle owe L H t rs) r <= through r) ->
  settle owe L H t rs = settle other L H t rs.
Proof.
  intro F. rewrite settle_history in F. rewrite !settle_is. f_equal. f_equal. apply map_ext_in. intros r Hr.
  apply agree. specialize (F r). now rewrite fill_in in F.
Qed.

Lemma step_agrees t ahead update : forall (program : Program Val (list nat * Grad * Side)) (L : Table Val)
  (H : History), (forall r, H r <= t) -> (forall r, snd (fst (step owe L H t program ahead update)) r <= through r) ->
  step owe L H t program ahead update = step other L H t program ahead update.
Proof.
  induction program as [[[touched gradient] side]|asked next IH]; intros L H HH F.
  - rewrite !step_done in *. assert (G := settle_grows owe L H t touched HH).
    assert (A := settle_agrees L H t touched). destruct (settle owe L H t touched) as [L1 H1]. cbn [snd] in *.
    assert (H1' : forall r, H1 r <= t + 1) by (intro x; specialize (G x); lia).
    set (L1' := scatter L1 touched (update t touched gradient (gather L1 touched))) in *.
    assert (G' := settle_grows owe L1' H1 (t + 1) ahead H1').
    rewrite <- A.
    + fold L1'. rewrite <- (settle_agrees L1' H1 (t + 1) ahead); [reflexivity|].
      destruct (settle owe L1' H1 (t + 1) ahead) as [L2 H2]. exact F.
    + intro r. specialize (G' r). specialize (F r).
      destruct (settle owe L1' H1 (t + 1) ahead) as [L2 H2]. cbn [fst snd] in *. lia.
  - rewrite !step_read in *. assert (G := settle_grows owe L H t asked HH).
    assert (A := settle_agrees L H t asked). destruct (settle owe L H t asked) as [L1 H1]. cbn [snd] in *.
    assert (H1' : forall r, H1 r <= t) by (intro x; apply G).
    rewrite <- A; [now apply IH|]. intro r. specialize (F r).
    assert (G' := step_grows owe t ahead update (next (gather L1 asked)) L1 H1 H1' r). lia.
Qed.

Lemma loop_agrees plan look_ahead update : forall n t (L : Table Val) (H : History) (side : Side),
  (forall r, H r <= t) ->
  (forall r, snd (fst (loop (Grad := Grad) owe plan look_ahead update n t (L, H, side))) r <= through r) ->
  loop owe plan look_ahead update n t (L, H, side) = loop other plan look_ahead update n t (L, H, side).
Proof.
  induction n as [|n IH]; intros t L H side HH F; [reflexivity|]. cbn [loop] in *.
  assert (G := step_grows owe t (look_ahead t side) update (plan t side) L H HH).
  assert (A := step_agrees t (look_ahead t side) update (plan t side) L H HH).
  destruct (step owe L H t (plan t side) (look_ahead t side) update) as [[L1 H1] side1]. cbn [fst snd] in *.
  assert (H1' : forall x, H1 x <= S t) by (intro x; specialize (G x); lia).
  rewrite <- A; [now apply IH|]. intro r. specialize (F r).
  assert (G' := loop_grows owe plan look_ahead update n (S t) L1 H1 side1 H1' r). lia.
Qed.
End Unused.

(** ** Fact 2: the spans of a row *)

(** a = x_0 <= y_0 = x_1 <= ... <= y_k = b. *)
Fixpoint chain (a b : nat) (spans : list (nat * nat)) : Prop :=
  match spans with [] => a = b | (x, y) :: rest => x = a /\ x <= y /\ chain y b rest end.

Lemma chain_snoc b c : forall spans a, chain a b spans -> b <= c -> chain a c (spans ++ [(b, c)]).
Proof.
  induction spans as [|[x y] spans IH]; cbn; intros a H Hc; [now subst|]. destruct H as (-> & H1 & H2). auto.
Qed.

Lemma chain_le b : forall spans a, chain a b spans -> a <= b.
Proof.
  induction spans as [|[x y] spans IH]; cbn; intros a H; [now subst|]. destruct H as (-> & H1 & H2). apply IH in H2.
  lia.
Qed.

(** Values that carry the spans they were charged for, in order. *)
Section Logged.
Context {Val Grad Side : Set}.
Definition Logged : Set := (Val * list (nat * nat))%type.
Variable owe : nat -> nat -> nat -> Val -> Val.
Variable plan : nat -> Side -> Program Val (list nat * Grad * Side).
Variable look_ahead : nat -> Side -> list nat.
Variable update : nat -> list nat -> Grad -> list Val -> list Val.

Definition owe_logged (r a b : nat) (w : Logged) : Logged := (owe r a b (fst w), snd w ++ [(a, b)]).

(** The model sees values, and an update writes values: neither sees a log. *)
Fixpoint blind {A : Set} (program : Program Val A) : Program Logged A :=
  match program with Done result => Done result | Read rows next => Read rows (fun vs => blind (next (map fst vs))) end.

Definition plan_logged (t : nat) (side : Side) := blind (plan t side).

Definition update_logged (t : nat) (touched : list nat) (gradient : Grad) (vs : list Logged) : list Logged :=
  combine (update t touched gradient (map fst vs)) (map snd vs).

Definition values (L : Table Logged) : Table Val := fun r => fst (L r).

Definition well_kept (t : nat) (L : Table Logged) (H : History) : Prop :=
  forall r, H r <= t /\ chain 0 (H r) (snd (L r)).

Lemma settle_keeps t t' L H rs : well_kept t L H -> t <= t' ->
  well_kept t' (fst (settle owe_logged L H t' rs)) (snd (settle owe_logged L H t' rs)).
Proof.
  intros K Ht r. assert (E := settle_row owe_logged L H t' rs r). destruct (K r) as [Kt Kc].
  assert (E1 := f_equal fst E). assert (E2 := f_equal snd E).
  destruct (in_dec Nat.eq_dec r rs); cbn [fst snd] in E1, E2; rewrite E1, E2.
  - split; [lia|]. cbn [owe_logged snd]. apply chain_snoc; [exact Kc|lia].
  - split; [lia|exact Kc].
Qed.

Lemma scatter_log touched : forall vs (L first : Table Logged), (forall r, snd (L r) = snd (first r)) ->
  forall r, snd (scatter L touched (combine vs (map snd (map first touched))) r) = snd (first r).
Proof.
  unfold scatter. induction touched as [|a touched IH]; intros vs L first E r; [apply E|].
  destruct vs as [|v vs]; [apply E|]. cbn. apply IH. intro x. unfold upd.
  destruct (Nat.eqb_spec x a); [now subst|apply E].
Qed.

Lemma step_keeps t ahead : forall (program : Program Val (list nat * Grad * Side)) L H, well_kept t L H ->
  well_kept (t + 1) (fst (fst (step owe_logged L H t (blind program) ahead update_logged)))
                    (snd (fst (step owe_logged L H t (blind program) ahead update_logged))).
Proof.
  induction program as [[[touched gradient] side]|asked next IH]; intros L H K; cbn [blind].
  - rewrite step_done. assert (K1 := settle_keeps t t L H touched K (le_n _)).
    destruct (settle owe_logged L H t touched) as [L1 H1]. cbn [fst snd] in K1.
    set (L1' := scatter L1 touched (update_logged t touched gradient (gather L1 touched))).
    assert (K1' : well_kept t L1' H1).
    { intro r. destruct (K1 r) as [A B]. split; [exact A|]. unfold L1', update_logged, gather.
      now rewrite scatter_log. }
    assert (K2 := settle_keeps t (t + 1) L1' H1 ahead K1' ltac:(lia)).
    now destruct (settle owe_logged L1' H1 (t + 1) ahead) as [L2 H2].
  - rewrite step_read. assert (K1 := settle_keeps t t L H asked K (le_n _)).
    destruct (settle owe_logged L H t asked) as [L1 H1]. cbn [fst snd] in K1. now apply IH.
Qed.

Lemma loop_keeps : forall n t L H side, well_kept t L H ->
  well_kept (t + n) (fst (fst (loop owe_logged plan_logged look_ahead update_logged n t (L, H, side))))
                    (snd (fst (loop owe_logged plan_logged look_ahead update_logged n t (L, H, side)))).
Proof.
  induction n as [|n IH]; intros t L H side K; cbn [loop].
  - now rewrite Nat.add_0_r.
  - assert (K1 := step_keeps t (look_ahead t side) (plan t side) L H K).
    change (plan_logged t side) with (blind (plan t side)).
    destruct (step owe_logged L H t (blind (plan t side)) (look_ahead t side) update_logged) as [[L1 H1] side1].
    cbn [fst snd] in K1. rewrite Nat.add_1_r in K1. rewrite Nat.add_succ_r, <- Nat.add_succ_l. now apply IH.
Qed.

(** For every row: 0 = h_0 <= h_1 <= ... <= h_k = T over the spans it was charged for.
    In a lazy run with its release, each row pays for each step exactly once, in order, in spans that do not overlap. *)
Theorem spans_form_a_chain rows W side steps :
  let '(L, H, _) := @lazy_run Plain Identity Logged Grad Side (fun r => (W r, [])) (fun _ => 0) side 0 steps
                      plan_logged look_ahead update_logged (@by_row Plain Identity Logged owe_logged) in
  let '(L', _) := @release Plain Identity Logged L H steps rows (@by_row Plain Identity Logged owe_logged) in
  forall r, In r rows -> chain 0 steps (snd (L' r)).
Proof.
  rewrite loop_is_run, Nat.sub_0_r.
  assert (K := loop_keeps steps 0 (fun r => (W r, [])) (fun _ => 0) side (fun r => conj (le_n 0) eq_refl)).
  destruct (loop _ _ _ _ steps 0 _) as [[L H] side']. cbn [fst snd plus] in K. rewrite release_is.
  assert (K' := settle_keeps steps steps L H rows K (le_n _)).
  assert (E := fun r => settle_row owe_logged L H steps rows r).
  destruct (settle owe_logged L H steps rows) as [L' H']. cbn [fst snd] in *.
  intros r Hr. specialize (E r). destruct (K' r) as [_ C]. destruct (in_dec Nat.eq_dec r rows); [|easy].
  apply (f_equal snd) in E. cbn [snd] in E. now rewrite E in C.
Qed.

(** ** Keeping the log changes nothing *)

Lemma scatter_values : forall touched vs ls (L : Table Logged) (P : Table Val),
  length ls = length touched -> (forall r, values L r = P r) ->
  forall r, values (scatter L touched (combine vs ls)) r = scatter P touched vs r.
Proof.
  unfold scatter. induction touched as [|a touched IH]; intros [|v vs] [|l ls] L P Len E r; try discriminate;
    try apply E.
  cbn. apply IH; [now injection Len|]. intro x. unfold values, upd. destruct (Nat.eqb_spec x a); [reflexivity|apply E].
Qed.

Lemma settle_values L H t rs (P : Table Val) : (forall r, values L r = P r) ->
  (forall r, values (fst (settle owe_logged L H t rs)) r = fst (settle owe P H t rs) r)
  /\ snd (settle owe_logged L H t rs) = snd (settle owe P H t rs).
Proof.
  intro E. split; [|now rewrite !settle_history]. intro r.
  assert (A := f_equal fst (settle_row owe_logged L H t rs r)). assert (B := f_equal fst (settle_row owe P H t rs r)).
  cbn [fst] in A, B. unfold values. rewrite A, B. specialize (E r). unfold values in E.
  destruct (in_dec Nat.eq_dec r rs); cbn [fst owe_logged]; now rewrite E.
Qed.

Lemma gather_values (L : Table Logged) (P : Table Val) rs : (forall r, values L r = P r) ->
  map fst (gather L rs) = gather P rs.
Proof. intro E. unfold gather. rewrite map_map. apply map_ext. exact E. Qed.

Lemma step_values t ahead : forall (program : Program Val (list nat * Grad * Side)) L (P : Table Val) H,
  (forall r, values L r = P r) ->
  let '(L', H', side) := step owe_logged L H t (blind program) ahead update_logged in
  let '(P', H2', side2) := step owe P H t program ahead update in
  (forall r, values L' r = P' r) /\ H' = H2' /\ side = side2.
Proof.
  induction program as [[[touched gradient] side]|asked next IH]; intros L P H E; cbn [blind].
  - rewrite !step_done. destruct (settle_values L H t touched P E) as [E1 H1'].
    destruct (settle owe_logged L H t touched) as [L1 H1], (settle owe P H t touched) as [P1 H2]. cbn [fst snd] in *.
    subst H2.
    set (L1' := scatter L1 touched (update_logged t touched gradient (gather L1 touched))).
    set (P1' := scatter P1 touched (update t touched gradient (gather P1 touched))).
    assert (E1' : forall r, values L1' r = P1' r).
    { unfold L1', P1', update_logged. rewrite (gather_values L1 P1 touched E1). apply scatter_values; [|exact E1].
      unfold gather. now rewrite !map_length. }
    destruct (settle_values L1' H1 (t + 1) ahead P1' E1') as [E2 H2'].
    destruct (settle owe_logged L1' H1 (t + 1) ahead), (settle owe P1' H1 (t + 1) ahead). cbn [fst snd] in *. auto.
  - rewrite !step_read. destruct (settle_values L H t asked P E) as [E1 H1'].
    destruct (settle owe_logged L H t asked) as [L1 H1], (settle owe P H t asked) as [P1 H2]. cbn [fst snd] in *.
    subst H2.
    rewrite (gather_values L1 P1 asked E1). apply IH. exact E1.
Qed.

(** The logged run is the run: same values, same history, same surroundings. *)
Theorem log_is_silent : forall n t L (P : Table Val) H side, (forall r, values L r = P r) ->
  let '(L', H', side') := loop owe_logged plan_logged look_ahead update_logged n t (L, H, side) in
  let '(P', H2', side2) := loop owe plan look_ahead update n t (P, H, side) in
  (forall r, values L' r = P' r) /\ H' = H2' /\ side' = side2.
Proof.
  induction n as [|n IH]; intros t L P H side E; cbn [loop]; [auto|].
  assert (S := step_values t (look_ahead t side) (plan t side) L P H E).
  change (plan_logged t side) with (blind (plan t side)).
  destruct (step owe_logged L H t (blind (plan t side)) (look_ahead t side) update_logged) as [[L1 H1] s1].
  destruct (step owe P H t (plan t side) (look_ahead t side) update) as [[P1 H2] s2].
  destruct S as (E1 & -> & ->). now apply IH.
Qed.
End Logged.

(** ** Fact 1: one outcome, two runs *)

Local Open Scope R_scope.

(** f a + f (a + 1) + ... + f (a + n - 1). *)
Fixpoint block (f : nat -> R) (a n : nat) : R := match n with O => 0 | S n => block f a n + f (a + n)%nat end.

Section Outcome.
Variable rate : nat -> R.

(** Pay for a span what its steps would have paid, with the noise of this outcome. *)
Definition owe_block (z : nat -> nat -> R) (r a b : nat) (w : R) : R := w - block (fun s => rate s * z r s) a (b - a).

Context {Grad Side : Set}.
Variable plan : nat -> Side -> Program R (list nat * Grad * Side).
Variable look_ahead : nat -> Side -> list nat.
Variable update : nat -> list nat -> Grad -> list R -> list R.

(** For every outcome: eager = lazy.
    Lazy training with exact block sums gives, outcome by outcome, the released table and the reads of the eager run. *)
Theorem pathwise z rows steps W side : NoDup rows ->
  (forall t s, within rows (plan t s)) -> (forall t s, incl (look_ahead t s) rows) ->
  @eager_run Plain Identity R Grad Side W side 0 steps rows plan update (@by_row Plain Identity R (owe_block z))
  = (let '(L, H, side') := @lazy_run Plain Identity R Grad Side W (fun _ => 0%nat) side 0 steps plan look_ahead update
                             (@by_row Plain Identity R (owe_block z)) in
     let '(W', _) := @release Plain Identity R L H steps rows (@by_row Plain Identity R (owe_block z)) in (W', side')).
Proof.
  intros Hrows Hplan Hahead. apply (@lazy_is_eager Plain Identity R Grad Side (owe_block z)); auto.
  - intros r t w. cbn. unfold owe_block. rewrite Nat.sub_diag. cbn. ring.
  - intros r a t w H. change (owe_block z r t (S t) (owe_block z r a t w) = owe_block z r a (S t) w). unfold owe_block.
    replace (S t - t)%nat with 1%nat by lia. replace (S t - a)%nat with (S (t - a)) by lia. cbn [block].
    replace (a + (t - a))%nat with t by lia. rewrite Nat.add_0_r. ring.
  - intros rs since until table _. now rewrite by_row_each_row.
  - intros t s. now exists (exist _ (plan t s) (Hplan t s)).
Qed.

Lemma block_ext f g a n : (forall s, (a <= s < a + n)%nat -> f s = g s) -> block f a n = block g a n.
Proof.
  induction n as [|n IH]; cbn; intro H; [reflexivity|]. rewrite IH by (intros; apply H; lia). now rewrite H by lia.
Qed.

(** If z and z' agree on every (row, step) that has been paid for, the runs under z and under z' are one.
    Nothing that happened so far depends on the noise that rows still owe. *)
Theorem owed_noise_is_unused z z' steps W side :
  let run z := @lazy_run Plain Identity R Grad Side W (fun _ => 0%nat) side 0 steps plan look_ahead update
                 (@by_row Plain Identity R (owe_block z)) in
  (forall r s, (s < snd (fst (run z)) r)%nat -> z r s = z' r s) -> run z' = run z.
Proof.
  intros run E.
  assert (Run : forall z, run z = loop (owe_block z) plan look_ahead update (steps - 0) 0 (W, fun _ => 0%nat, side))
    by (intro z0; exact (loop_is_run (owe_block z0) plan look_ahead update W (fun _ => 0%nat) side 0 steps)).
  clearbody run. rewrite (Run z), (Run z'). symmetry.
  apply (loop_agrees (owe_block z) (owe_block z')
           (snd (fst (loop (owe_block z) plan look_ahead update (steps - 0) 0 (W, fun _ => 0%nat, side)))));
    [|intro; auto|auto].
  intros r a b w Hb. unfold owe_block. f_equal. apply block_ext. intros s Hs. f_equal. apply E. rewrite Run. lia.
Qed.
End Outcome.

(** ** Fact 4: block sums over a chain are independent *)

Section Blocks.
Variables rate variance : nat -> R.

(** The coefficient of the noise of step s in the block sum over a span. *)
Definition coefficient (span : nat * nat) (s : nat) : R :=
  if ((fst span <=? s) && (s <? snd span))%nat%bool then rate s else 0.

(** The coefficient of the noise of step s in  sum_J u_J (sum over s in J of rate_s z_s). *)
Fixpoint combined (us : list R) (spans : list (nat * nat)) (s : nat) : R :=
  match us, spans with u :: us, J :: spans => u * coefficient J s + combined us spans s | _, _ => 0 end.

(** sum_J u_J^2 (sum over s in J of rate_s^2 variance_s). *)
Fixpoint separate (us : list R) (spans : list (nat * nat)) : R :=
  match us, spans with
  | u :: us, J :: spans => u ^ 2 * block (fun s => rate s ^ 2 * variance s) (fst J) (snd J - fst J) + separate us spans
  | _, _ => 0
  end.

Lemma block_scaled c f a n : block (fun s => c * f s) a n = c * block f a n.
Proof. induction n as [|n IH]; cbn [block]; [|rewrite IH]; ring. Qed.

Lemma block_split f a m n : block f a (m + n) = block f a m + block f (a + m) n.
Proof.
  induction n as [|n IH]; [rewrite Nat.add_0_r; cbn [block]; ring|].
  rewrite Nat.add_succ_r. cbn [block]. rewrite IH, Nat.add_assoc. ring.
Qed.

Lemma block_zero a n : block (fun _ => 0) a n = 0.
Proof. induction n as [|n IH]; cbn [block]; [|rewrite IH]; ring. Qed.

Lemma combined_before b : forall spans a us s, chain a b spans -> (s < a)%nat -> combined us spans s = 0.
Proof.
  induction spans as [|[x y] spans IH]; intros a [|u us] s H Hs; try reflexivity. cbn in H.
  destruct H as (-> & H1 & H2).
  cbn [combined]. rewrite (IH y) by (auto; lia). unfold coefficient. cbn [fst snd].
  replace (a <=? s)%nat with false by (symmetry; apply Nat.leb_gt; lia). cbn [andb]. ring.
Qed.

(** sum_s variance_s (sum_J u_J coefficient_J(s))^2 = sum_J u_J^2 (sum over s in J of rate_s^2 variance_s).
    -1/2 times this is the exponent of the joint characteristic function of the block sums of independent N(0,
    variance_s): it has no mixed terms, so the block sums are independent, each with the variance that its steps owe. *)
Theorem blocks_are_independent b : forall spans a us, chain a b spans ->
  block (fun s => variance s * combined us spans s ^ 2) a (b - a) = separate us spans.
Proof.
  induction spans as [|[x y] spans IH]; intros a us H; cbn in H.
  - subst. rewrite Nat.sub_diag. now destruct us.
  - destruct H as (-> & H1 & H2). assert (H3 := chain_le _ _ _ H2).
    replace (b - a)%nat with ((y - a) + (b - y))%nat by lia. rewrite block_split.
    replace (a + (y - a))%nat with y by lia. destruct us as [|u us].
    + transitivity (0 + 0); [|cbn [separate]; ring].
      f_equal; (rewrite (block_ext _ (fun _ => 0)); [apply block_zero|intros; cbn [combined]; ring]).
    + cbn [combined separate fst snd]. rewrite <- (IH y us H2). f_equal.
      * rewrite <- block_scaled. apply block_ext. intros s Hs. rewrite (combined_before b spans y) by (auto; lia).
        unfold coefficient. cbn [fst snd]. replace (a <=? s)%nat with true by (symmetry; apply Nat.leb_le; lia).
        replace (s <? y)%nat with true by (symmetry; apply Nat.ltb_lt; lia). cbn [andb]. ring.
      * apply block_ext. intros s Hs. unfold coefficient. cbn [fst snd].
        replace (s <? y)%nat with false by (symmetry; apply Nat.ltb_ge; lia). rewrite Bool.andb_false_r. ring.
Qed.
End Blocks.
