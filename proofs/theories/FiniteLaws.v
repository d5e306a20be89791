(** * FiniteLaws: lazy and eager have exactly the same law when the noise is a convolution semigroup on the integers.

    A law is a finite list of outcomes with rational weights; two laws are equal when they give every function the same
    expectation. This is a commutative monad in which nothing is assumed: no measure theory, no real numbers. It shows
    that the hypotheses of [lazy_is_eager] can be met by noise that is aggregated, one draw standing for many, and not
    only by replay. *)

Require Import List Arith Lia QArith Setoid Morphisms.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule.

(** ** Row by row *)

Section ByRow.
Context {M : Set -> Type} {CM : CommMonad M} {Val : Set}.
Variable owe : nat -> nat -> nat -> Val -> M Val.

(** Pay each row of a list for its own steps since, ..., until - 1, one row after the other. *)
Fixpoint by_row (rows since : list nat) (until : nat) (values : list Val) : M (list Val) :=
  match rows, since, values with
  | r :: rows, s :: since, w :: values =>
      bind (owe r s until w) (fun w => bind (by_row rows since until values) (fun ws => ret (w :: ws)))
  | _, _, _ => ret []
  end.

Lemma by_row_each_row rows since until (table : Table Val) :
  by_row rows (map since rows) until (map table rows) = mapM (fun r => owe r (since r) until (table r)) rows.
Proof.
  induction rows as [|r rows IH]; [reflexivity|]. cbn. now rewrite IH.
Qed.
End ByRow.

(** ** Exact finite laws *)

Local Open Scope Q_scope.
Local Arguments Qplus : simpl never.
Local Arguments Qmult : simpl never.

(** Outcomes with their weights. *)
Definition Law (A : Set) : Set := list (Q * A).

Definition expectation {A : Set} (m : Law A) (f : A -> Q) : Q := fold_right (fun '(p, a) s => p * f a + s) 0 m.

(** Equality of laws: every function has the same expectation, every event the same probability. *)
Definition same_law {A : Set} (m n : Law A) : Prop := forall f, expectation m f == expectation n f.

Definition certain {A : Set} (a : A) : Law A := [(1, a)].

Definition draw {A B : Set} (m : Law A) (k : A -> Law B) : Law B :=
  flat_map (fun '(p, a) => map (fun '(q, b) => (p * q, b)) (k a)) m.

Lemma expectation_nil {A : Set} (f : A -> Q) : expectation [] f = 0.
Proof. reflexivity. Qed.

Lemma expectation_cons {A : Set} p (a : A) m f : expectation ((p, a) :: m) f = p * f a + expectation m f.
Proof. reflexivity. Qed.

Lemma expectation_app {A : Set} (m n : Law A) f : expectation (m ++ n) f == expectation m f + expectation n f.
Proof.
  induction m as [|[p a] m IH]; cbn [app]; rewrite ?expectation_nil, ?expectation_cons; [ring|]. rewrite IH. ring.
Qed.

Lemma expectation_scale {A : Set} p (m : Law A) f :
  expectation (map (fun '(q, b) => (p * q, b)) m) f == p * expectation m f.
Proof.
  induction m as [|[q a] m IH]; cbn [map]; rewrite ?expectation_nil, ?expectation_cons; [ring|]. rewrite IH. ring.
Qed.

Lemma expectation_draw {A B : Set} (m : Law A) (k : A -> Law B) f :
  expectation (draw m k) f == expectation m (fun a => expectation (k a) f).
Proof.
  unfold draw. induction m as [|[p a] m IH]; [reflexivity|]. cbn [flat_map].
  rewrite expectation_app, expectation_scale, expectation_cons. now rewrite <- IH.
Qed.

Lemma expectation_ext {A : Set} (m : Law A) f g : (forall a, f a == g a) -> expectation m f == expectation m g.
Proof. intro H. induction m as [|[p a] m IH]; [reflexivity|]. rewrite !expectation_cons. now rewrite IH, H. Qed.

Lemma expectation_plus {A : Set} (m : Law A) f g :
  expectation m (fun a => f a + g a) == expectation m f + expectation m g.
Proof. induction m as [|[p a] m IH]; rewrite ?expectation_nil, ?expectation_cons; [ring|]. rewrite IH. ring. Qed.

Lemma expectation_times {A : Set} (m : Law A) c f : expectation m (fun a => c * f a) == c * expectation m f.
Proof. induction m as [|[p a] m IH]; rewrite ?expectation_nil, ?expectation_cons; [ring|]. rewrite IH. ring. Qed.

Lemma expectation_zero {A : Set} (m : Law A) : expectation m (fun _ => 0) == 0.
Proof. induction m as [|[p a] m IH]; [reflexivity|]. rewrite expectation_cons, IH. ring. Qed.

Lemma expectation_certain {A : Set} (a : A) f : expectation (certain a) f == f a.
Proof. unfold certain. rewrite expectation_cons, expectation_nil. ring. Qed.

(** Independent draws may be exchanged. *)
Lemma expectation_exchange {A B : Set} (m : Law A) (n : Law B) f :
  expectation m (fun a => expectation n (f a)) == expectation n (fun b => expectation m (fun a => f a b)).
Proof.
  induction m as [|[p a] m IH].
  - symmetry. apply expectation_zero.
  - rewrite expectation_cons, IH, <- expectation_times, <- expectation_plus. reflexivity.
Qed.

#[export] Instance FiniteLaw : CommMonad Law.
Proof.
  refine {| ret := @certain; bind := @draw; meq := @same_law |}; unfold same_law.
  - intro A; split; red; intros; eauto using Qeq_refl, Qeq_sym, Qeq_trans.
  - intros A B m m' f g Hm Hf h. rewrite !expectation_draw, Hm. apply expectation_ext. intro; apply Hf.
  - intros A B a f h. rewrite expectation_draw. now rewrite expectation_certain.
  - intros A m h. rewrite expectation_draw. apply expectation_ext. intro. now rewrite expectation_certain.
  - intros A B C m f g h. rewrite !expectation_draw. apply expectation_ext. intro. now rewrite expectation_draw.
  - intros A B C m n f h. rewrite !expectation_draw.
    transitivity (expectation m (fun a => expectation n (fun b => expectation (f a b) h))).
    { apply expectation_ext; intro; apply expectation_draw. }
    rewrite expectation_exchange. apply expectation_ext. intro; symmetry; apply expectation_draw.
Defined.

(** ** Convolution semigroups *)

(** The law of the sum of two independent draws. *)
Definition convolve (mu nu : Law Z) : Law Z := draw mu (fun x => draw nu (fun y => certain (x + y)%Z)).

(** mu_0 = 0 for certain, and mu_m * mu_n = mu_(m + n). *)
Definition semigroup (mu : nat -> Law Z) : Prop :=
  same_law (mu O) (certain 0%Z) /\ forall m n, same_law (convolve (mu m) (mu n)) (mu (m + n)%nat).

Section Aggregate.
(** mu_n is the noise of n ticks of a clock; [clock t] counts the ticks of all steps before t, as V(t) does. *)
Variable mu : nat -> Law Z.
Hypothesis mu_semigroup : semigroup mu.
Variable clock : nat -> nat.
Hypothesis clock_monotone : forall t, (clock t <= clock (S t))%nat.

(** Aggregate mode on the integers: one draw of the span's ticks, however many steps it stands for. *)
Definition aggregate (row since until : nat) (w : Z) : Law Z :=
  draw (mu (clock until - clock since)) (fun noise => certain (w - noise)%Z).

Lemma clock_ordered a b : (a <= b)%nat -> (clock a <= clock b)%nat.
Proof. induction 1; [auto|]. eapply Nat.le_trans; [eassumption|apply clock_monotone]. Qed.

Lemma aggregate_nothing row t w : meq (aggregate row t t w) (ret w).
Proof.
  intro f. cbn [ret FiniteLaw]. unfold aggregate.
  rewrite Nat.sub_diag, expectation_draw, (proj1 mu_semigroup _), !expectation_certain.
  now rewrite Z.sub_0_r.
Qed.

(** Spans need not be single steps: any two that meet add up. *)
Lemma aggregate_adds row a b c w : (a <= b)%nat -> (b <= c)%nat ->
  meq (bind (aggregate row a b w) (aggregate row b c)) (aggregate row a c w).
Proof.
  intros Hab Hbc f. assert (A := clock_ordered a b Hab). assert (B := clock_ordered b c Hbc).
  cbn [bind FiniteLaw]. unfold aggregate. rewrite !expectation_draw.
  replace (clock c - clock a)%nat with ((clock b - clock a) + (clock c - clock b))%nat by lia.
  rewrite <- (proj2 mu_semigroup _ _ _). unfold convolve. rewrite expectation_draw. apply expectation_ext. intro x.
  rewrite expectation_certain, !expectation_draw. apply expectation_ext. intro y. rewrite !expectation_certain.
  now replace (w - x - y)%Z with (w - (x + y))%Z by ring.
Qed.

(** Law(eager released table, everything read) = Law(lazy released table, everything read), exactly.
    For integer noise that is a convolution semigroup, LazyDP's one draw for many steps gives a run whose law is that of
    the eager run, whatever the model reads and however it chooses it. *)
Theorem finite_laws_agree {Grad Side : Set} (rows : list nat)
  (plan : nat -> Side -> Law (Program Z (list nat * Grad * Side))) (look_ahead : nat -> Side -> list nat)
  (update : nat -> list nat -> Grad -> list Z -> list Z) (steps : nat) (W : Table Z) (side : Side) :
  NoDup rows ->
  (forall t s, exists q : Law {p | within rows p}, meq (plan t s) (bind q (fun p => ret (proj1_sig p)))) ->
  (forall t s, incl (look_ahead t s) rows) ->
  meq (eager_run W side 0 steps rows plan update (by_row aggregate))
      (bind (lazy_run W (fun _ => O) side 0 steps plan look_ahead update (by_row aggregate))
            (fun '(L, H, side') => bind (release L H steps rows (by_row aggregate)) (fun '(W', _) => ret (W', side')))).
Proof.
  intros Hrows Hplan Hahead. apply (lazy_is_eager aggregate); auto.
  - exact aggregate_nothing.
  - intros r a t w H. apply aggregate_adds; lia.
  - intros rs since until table _. now rewrite by_row_each_row.
Qed.
End Aggregate.

(** ** There are such semigroups *)

(** The sum of n independent draws of one law. *)
Fixpoint power (mu : Law Z) (n : nat) : Law Z := match n with O => certain 0%Z | S n => convolve mu (power mu n) end.

Lemma convolve_certain mu : same_law (convolve mu (certain 0%Z)) mu.
Proof.
  intro f. unfold convolve. rewrite expectation_draw. apply expectation_ext. intro x.
  rewrite expectation_draw, !expectation_certain. now rewrite Z.add_0_r.
Qed.

(** Every law on the integers generates one: for example the sum of n fair signs. *)
Theorem power_semigroup mu : semigroup (power mu).
Proof.
  split; [intro; reflexivity|]. intros m n. induction m as [|m IH]; intro f; cbn [power plus].
  - unfold convolve. rewrite expectation_draw, expectation_certain, expectation_draw. apply expectation_ext. intro.
    now rewrite expectation_certain.
  - unfold convolve at 1 2 3. rewrite !expectation_draw. apply expectation_ext. intro x.
    transitivity (expectation (convolve (power mu m) (power mu n)) (fun s => f (x + s)%Z)).
    + unfold convolve. rewrite !expectation_draw. apply expectation_ext. intro y.
      rewrite expectation_certain, !expectation_draw. apply expectation_ext. intro z. rewrite !expectation_certain.
      now rewrite Z.add_assoc.
    + rewrite (IH _), expectation_draw. apply expectation_ext. intro. now rewrite expectation_certain.
Qed.

(** ** One draw in place of many

    The sum of n fair signs, drawn at once: 2k - n with weight C(n, k) / 2^n. It has n + 1 outcomes where n signs have
    2^n, and by the theorem above it may stand for any span of n ticks. *)

Definition fair_sign : Law Z := [(1 # 2, 1%Z); (1 # 2, (-1)%Z)].

Fixpoint choose (n k : nat) : nat :=
  match n, k with
  | _, O => 1
  | O, S _ => 0
  | S n, S k => choose n k + choose n (S k)
  end.

Fixpoint half (n : nat) : Q := match n with O => 1 | S n => (1 # 2) * half n end.

Definition choices (n k : nat) : Q := inject_Z (Z.of_nat (choose n k)).

Definition sum_of_signs (n k : nat) : Z := (2 * Z.of_nat k - Z.of_nat n)%Z.

Definition binomial (n : nat) : Law Z := map (fun k => (half n * choices n k, sum_of_signs n k)) (seq 0 (S n)).

Fixpoint sum_to (g : nat -> Q) (n : nat) : Q := match n with O => 0 | S n => sum_to g n + g n end.

Lemma sum_to_ext g h n : (forall k, g k == h k) -> sum_to g n == sum_to h n.
Proof. intro H. induction n as [|n IH]; cbn [sum_to]; [reflexivity|]. now rewrite IH, H. Qed.

Lemma sum_to_plus g h n : sum_to (fun k => g k + h k) n == sum_to g n + sum_to h n.
Proof. induction n as [|n IH]; cbn [sum_to]; [|rewrite IH]; ring. Qed.

Lemma sum_to_times c g n : sum_to (fun k => c * g k) n == c * sum_to g n.
Proof. induction n as [|n IH]; cbn [sum_to]; [|rewrite IH]; ring. Qed.

Lemma sum_to_first g n : sum_to g (S n) == g O + sum_to (fun k => g (S k)) n.
Proof. induction n as [|n IH]; [cbn [sum_to]; ring|]. cbn [sum_to] in *. rewrite IH. ring. Qed.

Lemma expectation_seq {A : Set} (p : nat -> Q) (v : nat -> A) f n :
  expectation (map (fun k => (p k, v k)) (seq 0 n)) f == sum_to (fun k => p k * f (v k)) n.
Proof.
  induction n as [|n IH]; [reflexivity|]. rewrite seq_S, map_app, expectation_app, IH. cbn [map plus sum_to].
  rewrite expectation_cons, expectation_nil. ring.
Qed.

Lemma choose_above : forall n k, (n < k)%nat -> choose n k = O.
Proof.
  induction n as [|n IH]; intros [|k] H; cbn [choose]; try lia. rewrite !IH by lia. reflexivity.
Qed.

Lemma pascal n k : choices (S n) (S k) == choices n k + choices n (S k).
Proof. unfold choices. cbn [choose]. now rewrite Nat2Z.inj_add, inject_Z_plus. Qed.

(** Without the common factor 2^-n. *)
Definition unscaled (n : nat) (f : Z -> Q) : Q := sum_to (fun k => choices n k * f (sum_of_signs n k)) (S n).

Lemma binomial_unscaled n f : expectation (binomial n) f == half n * unscaled n f.
Proof.
  unfold binomial. rewrite expectation_seq. unfold unscaled. rewrite <- sum_to_times. apply sum_to_ext. intro. ring.
Qed.

(** One more sign: Pascal's rule. *)
Lemma unscaled_step n f : unscaled (S n) f == unscaled n (fun z => f (1 + z)%Z) + unscaled n (fun z => f (-1 + z)%Z).
Proof.
  unfold unscaled. rewrite sum_to_first.
  transitivity (choices n 0 * f (-1 + sum_of_signs n 0)%Z
    + (sum_to (fun k => choices n k * f (1 + sum_of_signs n k)%Z) (S n)
       + sum_to (fun k => choices n (S k) * f (-1 + sum_of_signs n (S k))%Z) (S n))).
  - rewrite <- sum_to_plus. apply Qplus_comp.
    + replace (sum_of_signs (S n) 0) with (-1 + sum_of_signs n 0)%Z by (unfold sum_of_signs; lia).
      unfold choices. now destruct n.
    + apply sum_to_ext. intro k. rewrite pascal.
      replace (sum_of_signs (S n) (S k)) with (1 + sum_of_signs n k)%Z by (unfold sum_of_signs; lia).
      replace (-1 + sum_of_signs n (S k))%Z with (1 + sum_of_signs n k)%Z by (unfold sum_of_signs; lia). ring.
  - set (h := fun k => choices n k * f (-1 + sum_of_signs n k)%Z).
    assert (Zero : h (S n) == 0).
    { unfold h, choices. rewrite choose_above by lia. change (inject_Z (Z.of_nat 0)) with 0. ring. }
    assert (Last : sum_to h (S n) == h O + sum_to (fun k => h (S k)) (S n)).
    { rewrite <- sum_to_first. change (sum_to h (S (S n))) with (sum_to h (S n) + h (S n)). rewrite Zero. ring. }
    change (h O + (sum_to (fun k => choices n k * f (1 + sum_of_signs n k)%Z) (S n) + sum_to (fun k => h (S k)) (S n))
            == sum_to (fun k => choices n k * f (1 + sum_of_signs n k)%Z) (S n) + sum_to h (S n)).
    rewrite Last. ring.
Qed.

(** Law(2k - n with weight C(n, k) / 2^n) = law of the sum of n fair signs. *)
Theorem binomial_is_power : forall n, same_law (binomial n) (power fair_sign n).
Proof.
  induction n as [|n IH]; intro f.
  - rewrite binomial_unscaled. cbn [power]. rewrite (expectation_certain 0%Z f).
    unfold unscaled, choices, sum_of_signs. cbn. ring.
  - rewrite binomial_unscaled, unscaled_step. cbn [power half]. unfold convolve. rewrite expectation_draw.
    unfold fair_sign. rewrite !expectation_cons, expectation_nil.
    assert (E : forall g, half n * unscaled n g == expectation (power fair_sign n) g)
      by (intro g; rewrite <- binomial_unscaled; apply IH).
    assert (D : forall x, expectation (draw (power fair_sign n) (fun y => certain (x + y)%Z)) f
                          == half n * unscaled n (fun z => f (x + z)%Z)).
    { intro x. rewrite expectation_draw, E. apply expectation_ext. intro y. apply expectation_certain. }
    fold fair_sign. rewrite !D. ring.
Qed.

(** So the binomial laws are a semigroup, and aggregate mode with binomial noise has the law of eager with signs. *)
Corollary binomial_semigroup : semigroup binomial.
Proof.
  destruct (power_semigroup fair_sign) as [H0 Hadd]. split.
  - intro f. now rewrite (binomial_is_power 0 f), (H0 f).
  - intros m n f. rewrite (binomial_is_power (m + n) f), <- (Hadd m n f). unfold convolve.
    rewrite !expectation_draw, (binomial_is_power m _). apply expectation_ext. intro x.
    rewrite !expectation_draw. apply (binomial_is_power n).
Qed.
