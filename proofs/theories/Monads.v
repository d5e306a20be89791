(** What the generated definitions stand on: programs that may draw at random, tables of rows, and models that read.

    A theorem about "any commutative monad" holds at once for plain execution (the identity monad), for exact finite
    laws, and for every other notion of drawing whose independent draws may be exchanged. *)
Require Import List Arith Setoid Morphisms.
Import ListNotations.

(** [M A] is a computation that may draw and gives an [A]; [meq] is equality of laws. *)
Class CommMonad (M : Set -> Type) := {
  ret : forall {A : Set}, A -> M A;
  bind : forall {A B : Set}, M A -> (A -> M B) -> M B;
  meq : forall {A : Set}, M A -> M A -> Prop;
  meq_equiv : forall A : Set, Equivalence (@meq A);
  bind_cong : forall (A B : Set) (m m' : M A) (f g : A -> M B),
    meq m m' -> (forall a, meq (f a) (g a)) -> meq (bind m f) (bind m' g);
  bind_ret : forall (A B : Set) (a : A) (f : A -> M B), meq (bind (ret a) f) (f a);
  ret_bind : forall (A : Set) (m : M A), meq (bind m ret) m;
  bind_assoc : forall (A B C : Set) (m : M A) (f : A -> M B) (g : B -> M C),
    meq (bind (bind m f) g) (bind m (fun a => bind (f a) g));
  bind_comm : forall (A B C : Set) (m : M A) (n : M B) (f : A -> B -> M C),
    meq (bind m (fun a => bind n (f a))) (bind n (fun b => bind m (fun a => f a b))) }.

#[export] Existing Instance meq_equiv.
#[export] Instance bind_proper {M} {CM : CommMonad M} (A B : Set) :
  Proper (meq ==> pointwise_relation A meq ==> meq) (@bind M CM A B).
Proof. intros m m' Hm f g Hf. apply bind_cong; auto. Qed.

(** Plain execution: nothing is drawn, and equality is equality. *)
#[export] Instance Identity : CommMonad (fun A : Set => A).
Proof.
  refine {| ret := fun A a => a; bind := fun A B m f => f m; meq := fun A => @eq A |};
    intros; subst; auto using eq_equivalence.
Defined.

(** * Tables: one value for each row, changed only by [scatter] and [fill] *)

Definition Table (Val : Set) := nat -> Val.
Definition History := nat -> nat.

Definition upd {A : Set} (f : nat -> A) (k : nat) (v : A) : nat -> A := fun x => if Nat.eqb x k then v else f x.

(** [table[rows]]: copies of the rows' values. *)
Definition gather {A : Set} (f : nat -> A) (rows : list nat) : list A := map f rows.

(** [table[rows] = values]: where a row is named twice the last value stays. *)
Definition scatter {A : Set} (f : nat -> A) (rows : list nat) (values : list A) : nat -> A :=
  fold_left (fun f '(r, v) => upd f r v) (combine rows values) f.

(** [history[rows] = number]. *)
Definition fill {A : Set} (f : nat -> A) (rows : list nat) (v : A) : nat -> A := fold_left (fun f r => upd f r v) rows f.

(** [each(rows, number)]: the same number for every row. *)
Definition each {A : Set} (rows : list nat) (v : A) : list A := map (fun _ => v) rows.

(** [distinct(rows)]: every row once. *)
Definition distinct (rows : list nat) : list nat := nodup Nat.eq_dec rows.

(** * Models: programs that read rows, and may choose what to read by what they have read *)

Inductive Program (Val A : Set) : Set :=
  | Done (result : A)
  | Read (rows : list nat) (next : list Val -> Program Val A).
Arguments Done {Val A}. Arguments Read {Val A}.

Section Loops.
Context {M : Set -> Type} {CM : CommMonad M}.

Fixpoint foldM {S X : Set} (f : S -> X -> M S) (l : list X) (s : S) : M S :=
  match l with [] => ret s | x :: l => bind (f s x) (foldM f l) end.

Fixpoint mapM {X Y : Set} (f : X -> M Y) (l : list X) : M (list Y) :=
  match l with [] => ret [] | x :: l => bind (f x) (fun y => bind (mapM f l) (fun ys => ret (y :: ys))) end.

(** Run a model; [read] serves each of its reads and may change a state while it does. *)
Fixpoint serve {Val A S : Set} (read : S -> list nat -> M (S * list Val)) (program : Program Val A) (s : S)
  : M (S * A) :=
  match program with
  | Done a => ret (s, a)
  | Read rows next => bind (read s rows) (fun '(s, values) => serve read (next values) s)
  end.
End Loops.
