(** * Momentum: aggregated noise for an optimizer with a memory, as a two-dimensional Gaussian.

    The state of a coordinate is the pair (w, v) of weight and velocity, and a step without a gradient is
        v <- mu v + lam w + z,    w <- w - lr_t v,    z ~ N(0, variance_t),
    that is  x <- A_t x + noise with covariance Q_t.  The trainers of this project have no momentum; the theorem says
    what aggregate mode would have to draw if they had: the pending mean map Phi and the pending covariance Cov, both by
    the usual recursions. The assumptions are those of Aggregate.v, in two dimensions. *)

Require Import List Arith Lia Reals Lra Psatz.
Import ListNotations.
From samelaw Require Import Monads Gen_schedule Schedule FiniteLaws.
Local Open Scope R_scope.

(** ** Two-by-two matrices *)

Definition Vector : Set := (R * R)%type.
(** Row by row: (a11, a12, a21, a22). *)
Definition Matrix : Set := (R * R * R * R)%type.

Definition mul (a b : Matrix) : Matrix :=
  let '(a11, a12, a21, a22) := a in let '(b11, b12, b21, b22) := b in
  (a11 * b11 + a12 * b21, a11 * b12 + a12 * b22, a21 * b11 + a22 * b21, a21 * b12 + a22 * b22).
Definition transpose (a : Matrix) : Matrix := let '(a11, a12, a21, a22) := a in (a11, a21, a12, a22).
Definition add (a b : Matrix) : Matrix :=
  let '(a11, a12, a21, a22) := a in let '(b11, b12, b21, b22) := b in (a11 + b11, a12 + b12, a21 + b21, a22 + b22).
Definition apply_to (a : Matrix) (x : Vector) : Vector :=
  let '(a11, a12, a21, a22) := a in let '(p, q) := x in (a11 * p + a12 * q, a21 * p + a22 * q).
Definition identity : Matrix := (1, 0, 0, 1).
Definition zero : Matrix := (0, 0, 0, 0).

(** Symmetric, and x^T a x >= 0 for every x: what a covariance is. *)
Definition covariance (a : Matrix) : Prop :=
  let '(a11, a12, a21, a22) := a in a12 = a21 /\ forall x y, 0 <= a11 * x * x + 2 * a12 * x * y + a22 * y * y.

(** Cov(A x + noise) = A C A^T + Q. *)
Definition pushed (a c q : Matrix) : Matrix := add (mul (mul a c) (transpose a)) q.

Ltac entries := repeat match goal with a : Matrix |- _ => destruct a as [[[? ?] ?] ?] end;
  repeat match goal with x : Vector |- _ => destruct x end; cbn;
  repeat match goal with |- (_, _) = (_, _) => apply f_equal2 end; ring.

Lemma mul_assoc a b c : mul a (mul b c) = mul (mul a b) c. Proof. entries. Qed.
Lemma mul_identity a : mul a identity = a. Proof. unfold identity. entries. Qed.
Lemma identity_mul a : mul identity a = a. Proof. unfold identity. entries. Qed.
Lemma apply_mul a b x : apply_to a (apply_to b x) = apply_to (mul a b) x. Proof. entries. Qed.
Lemma apply_identity x : apply_to identity x = x. Proof. unfold identity. entries. Qed.
Lemma pushed_zero a q : pushed a zero q = q. Proof. unfold pushed, zero. entries. Qed.
Lemma pushed_identity c : pushed identity c zero = c. Proof. unfold pushed, identity, zero. entries. Qed.
Lemma pushed_twice a b c q p : pushed a (pushed b c q) p = pushed (mul a b) c (pushed a q p).
Proof. unfold pushed. entries. Qed.

Lemma covariance_zero : covariance zero.
Proof. split; [reflexivity|]. intros. lra. Qed.

Lemma covariance_pushed a c q : covariance c -> covariance q -> covariance (pushed a c q).
Proof.
  destruct a as [[[a b] a'] b'], c as [[[c1 c2] c3] c4], q as [[[q1 q2] q3] q4]. intros [<- Hc] [<- Hq]. cbn.
  split; [ring|]. intros x y. specialize (Hc (a * x + a' * y) (b * x + b' * y)). specialize (Hq x y). lra.
Qed.

(** ** The pending state *)

Section Optimizer.
Variables rate variance : nat -> R.
Hypothesis variance_nonneg : forall t, 0 <= variance t.
Variables momentum decay : R.

Definition step_map (t : nat) : Matrix := (1 - rate t * decay, - rate t * momentum, decay, momentum).
Definition step_noise (t : nat) : Matrix :=
  (rate t * rate t * variance t, - rate t * variance t, - rate t * variance t, variance t).

(** The formulas above, entry by entry. *)
Lemma step_map_is_the_step t w v z :
  let v' := momentum * v + decay * w + z in
  let '(w0, v0) := apply_to (step_map t) (w, v) in (w - rate t * v', v') = (w0 - rate t * z, v0 + z).
Proof. cbn. f_equal; ring. Qed.

Lemma step_noise_covariance t : covariance (step_noise t).
Proof.
  split; [reflexivity|]. intros x y.
  replace (_ + _ + _) with ((rate t * x - y) * (rate t * x - y) * variance t) by ring.
  apply Rmult_le_pos; [apply Rle_0_sqr|apply variance_nonneg].
Qed.

Fixpoint pending_map (lo n : nat) : Matrix :=
  match n with O => identity | S n => mul (step_map (lo + n)) (pending_map lo n) end.

Fixpoint pending_covariance (lo n : nat) : Matrix :=
  match n with O => zero | S n => pushed (step_map (lo + n)) (pending_covariance lo n) (step_noise (lo + n)) end.

Lemma pending_covariance_is_one lo n : covariance (pending_covariance lo n).
Proof. induction n; cbn; [apply covariance_zero|]. apply covariance_pushed; auto using step_noise_covariance. Qed.

(** Phi(lo, j + k) = Phi(lo + j, k) Phi(lo, j). *)
Lemma pending_map_adds lo j k : pending_map lo (j + k) = mul (pending_map (lo + j) k) (pending_map lo j).
Proof.
  induction k as [|k IH]; [now rewrite Nat.add_0_r, identity_mul|].
  rewrite Nat.add_succ_r. cbn [pending_map]. now rewrite IH, Nat.add_assoc, mul_assoc.
Qed.

(** Cov(lo, j + k) = Phi(lo + j, k) Cov(lo, j) Phi(lo + j, k)^T + Cov(lo + j, k).
    Pending noise of two spans that meet is the pending noise of both together: n steps can be had by doubling. *)
Theorem pending_covariance_adds lo j k :
  pending_covariance lo (j + k)
  = pushed (pending_map (lo + j) k) (pending_covariance lo j) (pending_covariance (lo + j) k).
Proof.
  induction k as [|k IH]; [now rewrite Nat.add_0_r, pushed_identity|].
  rewrite Nat.add_succ_r. cbn [pending_map pending_covariance]. now rewrite IH, Nat.add_assoc, pushed_twice.
Qed.

(** ** The run *)

Section Gaussian.
Context {M : Set -> Type} {CM : CommMonad M}.
Variable gauss : Vector -> Matrix -> M Vector.
Hypothesis gauss_certain : forall m, meq (gauss m zero) (ret m).
Hypothesis gauss_affine : forall a m c q, covariance c -> covariance q ->
  meq (bind (gauss m c) (fun x => gauss (apply_to a x) q)) (gauss (apply_to a m) (pushed a c q)).

(** One two-dimensional draw for the steps since, ..., until - 1. *)
Definition aggregate (row since until : nat) (x : Vector) : M Vector :=
  gauss (apply_to (pending_map since (until - since)) x) (pending_covariance since (until - since)).

Lemma aggregate_nothing row t x : meq (aggregate row t t x) (ret x).
Proof.
  unfold aggregate. rewrite Nat.sub_diag. cbn [pending_map pending_covariance]. rewrite apply_identity.
  apply gauss_certain.
Qed.

Lemma aggregate_adds row a b c x : (a <= b)%nat -> (b <= c)%nat ->
  meq (bind (aggregate row a b x) (aggregate row b c)) (aggregate row a c x).
Proof.
  intros Hab Hbc. unfold aggregate. rewrite gauss_affine by apply pending_covariance_is_one.
  rewrite apply_mul. replace (c - a)%nat with ((b - a) + (c - b))%nat by lia.
  rewrite pending_map_adds, pending_covariance_adds. replace (a + (b - a))%nat with b by lia. reflexivity.
Qed.

(** Law(eager) = Law(lazy with one two-dimensional draw a span), for SGD with momentum and weight decay.
    With momentum, lazy training needs one correlated pair of normals for each settlement. *)
Theorem momentum_is_eager {Grad Side : Set} (rows : list nat)
  (plan : nat -> Side -> M (Program Vector (list nat * Grad * Side))) (look_ahead : nat -> Side -> list nat)
  (update : nat -> list nat -> Grad -> list Vector -> list Vector) (steps : nat) (W : Table Vector) (side : Side) :
  NoDup rows ->
  (forall t s, exists q : M {p | within rows p}, meq (plan t s) (bind q (fun p => ret (proj1_sig p)))) ->
  (forall t s, incl (look_ahead t s) rows) ->
  meq (eager_run W side 0 steps rows plan update (by_row aggregate))
      (bind (lazy_run W (fun _ => O) side 0 steps plan look_ahead update (by_row aggregate))
            (fun '(L, H, side') => bind (release L H steps rows (by_row aggregate)) (fun '(W', _) => ret (W', side')))).
Proof.
  intros Hrows Hplan Hahead. apply (lazy_is_eager aggregate); auto.
  - exact aggregate_nothing.
  - intros r a t x H. apply aggregate_adds; lia.
  - intros rs since until table _. rewrite by_row_each_row. reflexivity.
Qed.
End Gaussian.
End Optimizer.
